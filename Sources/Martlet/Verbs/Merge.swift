internal import MartletCore
internal import MartletModel

/// What merging an adapter into a model made, and how it was checked.
public struct Merge: Sendable, CustomStringConvertible {
    /// The folder written.
    public var folder: String
    /// Tensors written, read again and found as meant.
    public var tensorCount: Int
    /// How the merged model's logits compare with those of the base model with the adapter beside it.
    public var difference: LogitDifference
    /// How far the adapter itself moves the base model's logits, for scale.
    public var effect: LogitDifference
    /// The largest relative difference that rounding to the dtype explains.
    public var tolerance: Double

    /// Writes a checkpoint in the hub's layout, reads it again, and compares logits before it says that it is done. A
    /// checkpoint that does not pass is deleted. `dtype` nil keeps the base model's.
    public static func run(
        model: String, adapter folder: String, into out: String, dtype: DType? = nil, compute: Compute = Compute()
    ) throws(MartletError) -> Merge {
        let base = try Checkpoint(folder: model)
        let adapter = try Adapter(folder: folder, for: base.configuration)
        let merged = MergedCheckpoint(base: base, adapter: adapter, dtype: dtype)
        try merged.write(to: out)
        do throws(MartletError) {
            let verification = try merged.verify(out)
            return try compare(base, adapter, out, dtype ?? base.storedDType, verification.tensorCount, compute)
        } catch {
            try? FileSystem.remove(out)
            throw error
        }
    }

    private static func compare(
        _ base: Checkpoint, _ adapter: Adapter, _ out: String, _ dtype: DType, _ tensorCount: Int, _ compute: Compute
    ) throws(MartletError) -> Merge {
        let probe = base.configuration.probe
        let wanted = try Model.logits(base, adapter: adapter, probe, compute)
        let without = try Model.logits(base, adapter: nil, probe, compute)
        let found = try Model.logits(try Checkpoint(folder: out), adapter: nil, probe, compute)
        let merge = Merge(
            folder: out, tensorCount: tensorCount, difference: LogitDifference(found, from: wanted),
            effect: LogitDifference(wanted, from: without), tolerance: tolerance(of: dtype))
        guard merge.difference.relative <= merge.tolerance else {
            throw MartletError(
                "the merged model does not answer like base model and adapter", in: out,
                because:
                    "its logits differ by \(merge.difference); \(dtype.rawValue) explains \(percent(merge.tolerance)) at most",
                fix: "merge with a finer dtype (--dtype f32), or use the adapter unmerged; the folder was deleted")
        }
        return merge
    }

    /// Rounding noise of the weights, grown by a factor for depth and for tokens whose experts it changes.
    private static func tolerance(of dtype: DType) -> Double {
        switch dtype {
        case .bfloat16: 0.1
        case .float16: 0.02
        default: 0.001
        }
    }

    /// The result for machines.
    public var json: String {
        let object: JSON = [
            "folder": .string(folder), "tensors": .integer(tensorCount),
            "logits_max_difference": .number(difference.largest),
            "logits_relative_difference": .number(difference.relative), "tolerance": .number(tolerance),
            "adapter_max_effect": .number(effect.largest), "adapter_relative_effect": .number(effect.relative),
        ]
        return object.text()
    }

    /// The result for people.
    public var description: String {
        var lines = [
            "\(folder): \(tensorCount) tensors written, read again, and as meant",
            "logits against base + adapter: \(difference) (at most \(percent(tolerance)) allowed)",
            "the adapter moves the base model's logits by \(effect)",
        ]
        if effect.relative > 0, difference.relative > effect.relative / 2 {
            lines.append("note: rounding is as large as what the adapter does; a finer --dtype keeps more of it")
        }
        return lines.joined(separator: "\n")
    }
}

/// How far two sets of logits are apart.
public struct LogitDifference: Sendable, Equatable, CustomStringConvertible {
    /// The largest distance of any logit.
    public var largest: Double
    /// Root of the mean squared distance over that of the reference's logits.
    public var relative: Double

    init(_ a: [Float], from reference: [Float]) {
        var largest = 0.0, squares = 0.0, size = 0.0
        for (x, y) in zip(a, reference) {
            let distance = Double(x) - Double(y)
            largest = max(largest, distance.magnitude)
            squares += distance * distance
            size += Double(y) * Double(y)
        }
        self.largest = a.count == reference.count ? largest : .infinity
        relative = a.count == reference.count ? (squares / max(size, .leastNormalMagnitude)).squareRoot() : .infinity
    }

    /// "0.0123 at most, 0.45% on average".
    public var description: String { "\(fixed(largest, 4)) at most, \(percent(relative)) on average" }
}

private func percent(_ share: Double) -> String { fixed(share * 100, share < 0.01 ? 3 : 1) + "%" }

extension ModelConfiguration {
    /// Three fixed sequences of tokens that any model of this vocabulary can be asked.
    fileprivate var probe: PackedStep {
        var random = RandomStream(seed: 0), step = PackedStep()
        let length = min(16, maximumPositions)
        for _ in 0..<3 {
            let tokens = (0..<length).map { _ in Int32(random.next() % UInt64(vocabularyCount)) }
            step.append(tokens, isTrained: tokens.map { _ in true })
        }
        return step
    }
}

extension Model {
    /// The logits of every row of a step.
    static func logits(
        _ checkpoint: Checkpoint, adapter: Adapter?, _ step: PackedStep, _ compute: Compute = Compute()
    ) throws(MartletError) -> [Float] {
        try forInference(checkpoint, adapter: adapter, .logits(stepTokens: step.tokenCount), compute).logits(
            step)
    }
}

/// Writes an adapter again in another layout.
public enum AdapterExport {
    /// Converts the adapter in `folder`, trained on `model`, and reads the result again to compare it.
    public static func run(
        adapter folder: String, model: String, into out: String, layout: Recipe.ExportLayout
    ) throws(MartletError) -> String {
        let configuration = try Checkpoint.configuration(of: model)
        guard layout != .merged else {
            throw MartletError(
                "an adapter export is not merged", in: "--layout", because: "it stays an adapter",
                fix: "use `martlet merge`")
        }
        let adapter = try Adapter(folder: folder, for: configuration)
        guard !FileSystem.exists(FileSystem.join(out, "adapter_config.json")) else {
            throw MartletError(
                "the output folder is taken", in: out, because: "an adapter stands there", fix: "choose another path")
        }
        try adapter.write(to: out, for: configuration, layout: layout == .fused ? .fused : .perExpert)
        let written = try Adapter(folder: out, for: configuration)
        guard written.isSameFunction(as: adapter) else {
            throw MartletError(
                "what was written is not what was meant", in: out, because: "reading it again gives other matrices",
                fix: "check the disk and export again")
        }
        return "\(out): \(written.matrices.count) weights adapted, layout \(layout.rawValue), read again and as meant"
    }
}

extension Adapter {
    /// Whether both add the same delta to every weight; ranks may differ by padding.
    fileprivate func isSameFunction(as other: Adapter) -> Bool {
        guard Set(matrices.keys) == Set(other.matrices.keys) else { return false }
        return matrices.allSatisfy { weight, pair in
            guard let twin = other.matrices[weight] else { return false }
            var mine = [Float](repeating: 0, count: pair.inputCount), theirs = mine
            let rows = pair.expertCount * pair.outputCount
            return stride(from: 0, to: rows, by: max(1, rows / 64)).allSatisfy { row in
                for i in mine.indices { (mine[i], theirs[i]) = (0, 0) }
                addDelta(of: weight, rows: row..<row + 1, to: &mine)
                other.addDelta(of: weight, rows: row..<row + 1, to: &theirs)
                let largest = theirs.map(\.magnitude).max() ?? 0
                return twin.outputCount == pair.outputCount
                    && zip(mine, theirs).allSatisfy { ($0 - $1).magnitude <= largest * 1e-5 }
            }
        }
    }
}
