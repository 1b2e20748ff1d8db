import MartletCore
import MartletModel
import MartletTestSupport
import Testing

/// Models small enough to write a hundred of, with all extents different.
enum Small {
    static let moe = ModelConfiguration(
        modelType: "qwen3_moe", hiddenSize: 8, layerCount: 3, vocabularyCount: 17, queryHeadCount: 4,
        keyValueHeadCount: 2,
        headSize: 6, denseInnerSize: 11, ropeTheta: 10000, maximumPositions: 64, tiesEmbeddings: false,
        experts: .init(expertCount: 3, expertsPerToken: 2, innerSize: 5, normalizesTopK: true),
        isSparse: [true, false, true], endTokens: [3])
    static let dense = ModelConfiguration(
        modelType: "qwen3", hiddenSize: 8, layerCount: 2, vocabularyCount: 17, queryHeadCount: 4, keyValueHeadCount: 2,
        headSize: 6, denseInnerSize: 11, ropeTheta: 1e6, maximumPositions: 64, tiesEmbeddings: true,
        isSparse: [false, false], endTokens: [3, 4])

    static func write(
        _ configuration: ModelConfiguration = moe, to path: String, dtype: DType = .bfloat16, shardSize: Int = 1 << 30
    ) throws {
        try RandomCheckpoint(configuration: configuration, seed: 5, standardDeviation: 0.5, dtype: dtype)
            .write(to: path, replaces: true, maximumShardSize: shardSize)
    }

    /// Tensors of a folder as values, for tests that change some and write them back.
    static func tensors(of path: String) throws -> [String: (dtype: DType, shape: [Int], values: [Float])] {
        var tensors: [String: (dtype: DType, shape: [Int], values: [Float])] = [:]
        for tensor in try SafeTensorsFolder(path).tensors {
            tensors[tensor.name] = (try #require(tensor.dtype), tensor.shape, try tensor.floats())
        }
        return tensors
    }

    static func write(
        _ tensors: [String: (dtype: DType, shape: [Int], values: [Float])], to path: String
    ) throws {
        let descriptions = tensors.map { TensorDescription($0, $1.dtype, $1.shape) }.sorted { $0.name < $1.name }
        try SafeTensorsWriter.write(descriptions, to: path) { (tensor, sink) throws(MartletError) in
            let values = tensors[tensor.name]?.values ?? []
            if tensor.dtype.isFloat {
                try sink.write(values)
            } else {
                try [UInt8](repeating: 0, count: tensor.byteCount).withBytes { (bytes) throws(MartletError) in
                    try sink.write(bytes)
                }
            }
        }
    }

    /// An adapter of random values on every adaptable weight, or on those that `isChosen` names.
    static func adapter(
        _ configuration: ModelConfiguration = moe, rank: Int = 3, alpha: Double = 5, usesRSLoRA: Bool = false,
        isChosen: (Weight) -> Bool = { _ in true }
    ) -> Adapter {
        var stream = RandomStream(seed: 11)
        func random(_ shape: [Int]) -> [Float] { (0..<shape.reduce(1, *)).map { _ in stream.normal() } }
        var adapter = Adapter(
            settings: AdapterSettings(rank: rank, alpha: alpha, usesRSLoRA: usesRSLoRA, baseModel: "small"))
        for weight in configuration.weights where weight.isAdaptable && isChosen(weight) {
            let shape = configuration.shape(of: weight).array, leading = Array(shape.dropLast(2))
            let aShape = leading + [rank, shape[shape.count - 1]], bShape = leading + [shape[shape.count - 2], rank]
            adapter.matrices[weight] = LoRAMatrices(
                a: random(aShape), aShape: aShape, b: random(bShape), bShape: bShape)
        }
        return adapter
    }
}

/// Replaces a key of a parsed configuration; nil removes it.
func edited(_ json: JSON, _ key: String, _ value: JSON?) -> JSON {
    var object = json.object ?? [:]
    object[key] = value
    return .object(object)
}
