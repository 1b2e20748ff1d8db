package import MartletCore

/// An untrained model: the embedding and the projections normal, the projections that write into the residual stream
/// narrower by sqrt(2 x layers) (GPT-2), the norms one. The same seed gives the same bytes.
package struct RandomCheckpoint: Sendable {
    package var configuration: ModelConfiguration
    package var seed: UInt64
    package var standardDeviation: Float
    package var dtype: DType

    package init(
        configuration: ModelConfiguration, seed: UInt64, standardDeviation: Float = 0.02, dtype: DType = .bfloat16
    ) {
        self.configuration = configuration
        self.seed = seed
        self.standardDeviation = standardDeviation
        self.dtype = dtype
    }

    /// Writes the folder, with the tokenizer of `tokenizerFolder` if one is given; it appears complete or not at all.
    package func write(
        to path: String, tokenizerFolder: String? = nil, replaces: Bool = false, maximumShardSize: Int = 5_000_000_000
    ) throws(MartletError) {
        var json = configuration.json(dtype: dtype).object ?? [:]
        json["initializer_range"] = .number(Double("\(standardDeviation)") ?? 0.02)
        let folder = try AtomicFolder(path, replaces: replaces)
        let order = Dictionary(configuration.weights.enumerated().map { ($1, UInt64($0)) }) { first, _ in first }
        try Checkpoint.write(
            configuration, .object(json), to: folder, maximumShardSize: maximumShardSize,
            dtype: { _ throws(MartletError) in dtype }
        ) { (weight, rows) throws(MartletError) in
            values(of: weight, number: order[weight] ?? 0, rows)
        }
        if let tokenizerFolder { try Checkpoint.copyCompanions(from: tokenizerFolder, to: folder) }
        try folder.commit()
    }

    /// Every element has its own counters, so that the values do not depend on the pieces in which they are made.
    private func values(of weight: Weight, number: UInt64, _ rows: Range<Int>) -> [Float] {
        let columns = configuration.shape(of: weight)[-1], count = rows.count * columns
        if weight.isNorm { return [Float](repeating: 1, count: count) }
        var stream = RandomStream(seed: seed, counter: number << 44 + UInt64(rows.lowerBound * columns) * 2)
        let deviation = deviation(of: weight)
        return (0..<count).map { _ in stream.normal() * deviation }
    }

    private func deviation(of weight: Weight) -> Float {
        switch weight {
        case .output, .down, .expertsDown: standardDeviation / Float(2 * configuration.layerCount).squareRoot()
        default: standardDeviation
        }
    }
}
