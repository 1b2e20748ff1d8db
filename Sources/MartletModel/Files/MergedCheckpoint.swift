package import MartletCore

/// A checkpoint with what was learned put into its weights: W + scale * B A in float32, rounded once; or weights that were
/// trained whole, in place of the original ones.
package struct MergedCheckpoint {
    package let base: Checkpoint
    package let adapter: Adapter?
    /// nil keeps every weight's stored dtype.
    package let dtype: DType?
    /// The weights that were trained whole; nil for the others. Called once a weight.
    private let trained: (Weight) throws(MartletError) -> [Float]?

    package init(
        base: Checkpoint, adapter: Adapter? = nil, dtype: DType? = nil,
        trained: @escaping (Weight) throws(MartletError) -> [Float]? = { _ throws(MartletError) in nil }
    ) {
        self.base = base
        self.adapter = adapter
        self.dtype = dtype
        self.trained = trained
    }

    /// Writes a whole model folder, tokenizer and configuration included; it appears complete or not at all.
    package func write(
        to path: String, replaces: Bool = false, maximumShardSize: Int = 5_000_000_000
    ) throws(MartletError) {
        try checkFit()
        let folder = try AtomicFolder(path, replaces: replaces)
        let rows = rowSource()
        try Checkpoint.write(
            base.configuration, configJSON, to: folder, maximumShardSize: maximumShardSize,
            dtype: { (weight) throws(MartletError) in try storedDType(weight) }, rows)
        try Checkpoint.copyCompanions(from: base.folder, to: folder)
        try folder.commit()
    }

    /// What re-reading a written folder found.
    package struct Verification: Sendable, Equatable {
        package var tensorCount: Int
        /// The largest distance between a stored value and the float32 value that was meant, which rounding explains.
        package var largestRounding: Float
    }

    /// Opens what was written and compares every tensor with what was meant, rounded; a difference is an error.
    package func verify(_ path: String) throws(MartletError) -> Verification {
        let written = try Checkpoint(folder: path), rows = rowSource()
        try written.validate()
        guard written.configuration == base.configuration else { throw differs("config.json", path) }
        var verification = Verification(tensorCount: 0, largestRounding: 0)
        for weight in base.weights {
            let parts = try written.parts(of: weight)
            for (part, tensor) in parts {
                verification.tensorCount += 1
                let dtype = try tensor.floatDType()
                for piece in Checkpoint.pieces(of: part) {
                    let meant = try rows(weight, piece), found = try written.readFloats([(part, tensor)], rows: piece)
                    guard rounded(meant, to: dtype) == found else { throw differs("tensor '\(tensor.name)'", path) }
                    for i in meant.indices {
                        verification.largestRounding = max(
                            verification.largestRounding, (meant[i] - found[i]).magnitude)
                    }
                }
            }
        }
        return verification
    }

    /// The base's config.json with the dtype that the weights now have.
    private var configJSON: JSON {
        guard let dtype, var object = base.configJSON.object else { return base.configJSON }
        object[object["dtype"] != nil ? "dtype" : "torch_dtype"] = .string(dtype.torchName)
        return .object(object)
    }

    private func storedDType(_ weight: Weight) throws(MartletError) -> DType {
        if let dtype { return dtype }
        return try base.parts(of: weight).first?.tensor.floatDType() ?? .bfloat16
    }

    /// The values meant. A weight's parts are looked up, and a trained weight fetched, once as long as it is asked for.
    private func rowSource() -> RowSource {
        var current: (weight: Weight, parts: [(part: WeightPart, tensor: HostTensor)], trained: [Float]?)?
        return { (weight, rows) throws(MartletError) in
            if current?.weight != weight {
                current = nil
                current = (weight, try base.parts(of: weight), try trained(weight))
            }
            let columns = base.configuration.shape(of: weight)[-1]
            var values: [Float]
            if let whole = current?.trained {
                guard whole.count == base.configuration.shape(of: weight).count else {
                    throw wrongCount(weight, whole.count)
                }
                values = Array(whole[rows.lowerBound * columns..<rows.upperBound * columns])
            } else {
                values = try base.readFloats(current?.parts ?? [], rows: rows)
            }
            adapter?.addDelta(of: weight, rows: rows, to: &values)
            return values
        }
    }

    private func checkFit() throws(MartletError) {
        if let dtype, !dtype.isFloat {
            throw MartletError(
                "a model cannot be written in this dtype", because: "it is \(dtype.rawValue)",
                fix: "choose BF16, F16 or F32")
        }
        for (weight, pair) in adapter?.matrices ?? [:] { try pair.checkFit(weight, base.configuration) }
    }

    private func wrongCount(_ weight: Weight, _ count: Int) -> MartletError {
        MartletError(
            "a trained weight does not fit the model", in: "\(weight)",
            because: "it has \(count) elements, and the model needs \(base.configuration.shape(of: weight))",
            fix: "export with the base model that was trained")
    }

    private func differs(_ what: String, _ path: String) -> MartletError {
        MartletError(
            "what was written is not what was meant", in: "\(path), \(what)",
            because: "reading it again gives other values",
            fix: "check the disk (`dmesg` shows its errors) and export again")
    }
}

private func rounded(_ values: [Float], to dtype: DType) -> [Float] {
    let bytes = [UInt8](unsafeUninitializedCapacity: values.count * dtype.byteCount) { buffer, initialized in
        values.withUnsafeBufferPointer { convertFromFloat($0, as: dtype, into: UnsafeMutableRawBufferPointer(buffer)) }
        initialized = values.count * dtype.byteCount
    }
    return [Float](unsafeUninitializedCapacity: values.count) { buffer, initialized in
        bytes.withUnsafeBytes { convertToFloat($0, as: dtype, into: buffer) }
        initialized = values.count
    }
}
