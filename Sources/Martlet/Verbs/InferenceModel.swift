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
        _ checkpoint: Checkpoint, adapter: Adapter? = nil, _ use: Use, _ compute: Compute = Compute(), limit: Int? = nil
    ) throws(MartletError) -> Model {
        let backend = try compute.makeBackend()
        let settings = ModelSettings(.inference, adapter: adapter.map(LoRASettings.init))
        let planner = Planner(checkpoint.configuration, settings, backend)
        let plan = try inferencePlan(use, planner, limit: limit ?? DeviceMemory(of: backend).plannable)
        let model = try Model(checkpoint, settings, plan, backend)
        if let adapter { try model.load(adapter) }
        return model
    }

    private static func inferencePlan(_ use: Use, _ planner: Planner, limit: Int) throws(MartletError) -> ExecutionPlan
    {
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
}
