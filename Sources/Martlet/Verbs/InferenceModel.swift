internal import MartletCPU
internal import MartletCore
package import MartletModel

extension Model {
    /// What a model without training is for.
    package enum Use: Sendable, Equatable {
        /// The loss of packed steps of at most this many tokens, in sequences of at most `length`.
        case loss(stepTokens: Int, length: Int)
        /// The logits of every row of a step of at most this many tokens.
        case logits(stepTokens: Int)
        /// Text, with a key/value cache of this many tokens.
        case generation(context: Int)
    }

    /// Reads a checkpoint, and an adapter to apply to it, for use without training. The decoded weights stay in memory if
    /// they fit into `limit` bytes (nil: what is free).
    package static func forInference(
        _ checkpoint: Checkpoint, adapter: Adapter? = nil, _ use: Use, threads: Int? = nil, limit: Int? = nil
    ) throws(MartletError) -> Model {
        let backend = CPUBackend(threads: threads)
        let settings = ModelSettings(.inference, adapter: adapter?.loraSettings)
        let planner = Planner(checkpoint.configuration, settings, backend)
        let plan = try inferencePlan(use, planner, limit: limit ?? ProcessMemory.availableByteCount)
        let model = try Model(checkpoint, settings, plan, backend)
        if let adapter { try model.apply(adapter) }
        return model
    }

    private static func inferencePlan(_ use: Use, _ planner: Planner, limit: Int) throws(MartletError) -> ExecutionPlan {
        var plan: ExecutionPlan
        switch use {
        case .loss(let tokens, let length):
            return try planner.plan(stepTokens: tokens, maximumLength: length, limit: limit)
        case .logits(let tokens):
            plan = ExecutionPlan(stepTokens: tokens, tileTokens: tokens, maximumLength: tokens)
            plan.logitRows = tokens
        case .generation(let context):
            plan = ExecutionPlan(stepTokens: context, tileTokens: min(context, 256), maximumLength: context)
            plan.caches = true
            plan.logitRows = 1
        }
        let needed = planner.byteCount(plan)
        guard needed <= limit else {
            throw MartletError(
                "the model does not fit into memory", in: "the memory plan",
                because: "\(plan.stepTokens) tokens need \(formatBytes(needed)), and \(formatBytes(limit)) are free",
                fix: "close other programs, or ask for a shorter context")
        }
        plan.keepsWeights = true
        if planner.byteCount(plan) > limit { plan.keepsWeights = false }
        return plan
    }

    /// Puts an adapter's matrices where the model applies them; a target that the adapter leaves out gets zeros.
    package func apply(_ adapter: Adapter) throws(MartletError) {
        for weight in configuration.weights {
            guard let tensors = adapterTensors(on: weight) else { continue }
            backend.zero(tensors.a)
            backend.zero(tensors.b)
            guard let pair = adapter.matrices[weight] else { continue }
            let rank = tensors.a.shape[-2]
            guard tensors.a.count * pair.rank == pair.a.count * rank, tensors.b.count * pair.rank == pair.b.count * rank else {
                throw MartletError(
                    "the adapter does not fit the model", in: weight.name,
                    because: "its matrices are \(pair.aShape) and \(pair.bShape), the model takes \(tensors.a.shape) and "
                        + "\(tensors.b.shape)",
                    fix: "use the base model that the adapter was trained on")
            }
            upload(padded(pair.a, from: pair.rank * pair.inputCount, to: rank * pair.inputCount), into: tensors.a)
            upload(padded(pair.b, from: pair.rank, to: rank), into: tensors.b)
        }
    }
}

/// Runs of `length` values, each followed by zeros up to `newLength`.
private func padded(_ values: [Float], from length: Int, to newLength: Int) -> [Float] {
    guard newLength > length, length > 0 else { return values }
    let zeros = [Float](repeating: 0, count: newLength - length)
    return stride(from: 0, to: values.count, by: length).flatMap { values[$0..<$0 + length] + zeros }
}

extension Adapter {
    /// The adapter as the model takes it: at the largest rank of its matrices, with the scale that it has at its own.
    package var loraSettings: LoRASettings {
        let rank = max(1, matrices.values.map(\.rank).max() ?? 1)
        let targets = LoRATarget.allCases.filter { target in
            matrices.keys.contains { target.weight(layer: $0.layer ?? 0) == $0 }
        }
        return LoRASettings(rank: rank, alpha: Double(settings.scale) * Double(rank), targets: Set(targets))
    }
}
