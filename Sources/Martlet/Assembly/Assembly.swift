internal import MartletCUDA
package import MartletCore
package import MartletData
internal import MartletModel

/// Puts a run together from its recipe: checkpoint, dataset, plan, model.
package struct Assembly {
    package let recipe: Recipe

    package init(recipe: Recipe) { self.recipe = recipe }

    /// How the model's folder reads and writes text.
    package struct ModelText {
        package var encoder: any TextEncoder
        /// nil if the model has no chat template.
        package var renderer: (any ConversationRenderer)?
        /// Tokens that end an answer.
        package var endTokens: Set<Int32>

        package init(
            encoder: any TextEncoder, renderer: (any ConversationRenderer)?, endTokens: Set<Int32> = []
        ) {
            self.encoder = encoder
            self.renderer = renderer
            self.endTokens = endTokens.union(encoder.eosID.map { [$0] } ?? [])
        }
    }

    // MARK: Settings

    private func settings(_ configuration: ModelConfiguration) throws(MartletError) -> ModelSettings {
        var settings: ModelSettings
        switch recipe.method {
        case .full: settings = ModelSettings(.full)
        case .lora:
            settings = ModelSettings(
                .lora,
                adapter: LoRASettings(
                    rank: recipe.loraR, alpha: recipe.loraAlpha, usesRSLoRA: recipe.useRslora,
                    dropout: Float(recipe.loraDropout),
                    targets: try Targets(configuration: configuration).selected(by: recipe)))
        }
        settings.seed = UInt64(recipe.seed)
        settings.quantizesMoments = recipe.optim == .adamw8Bit
        guard recipe.trainRouter else { return settings }
        guard let experts = configuration.experts, configuration.isSparse.contains(true) else {
            throw recipe.refusal(
                "train_router", "'train_router' has no effect", because: "this model has no routers: it is dense",
                fix: "delete 'train_router'")
        }
        settings.trainsRouter = true
        settings.auxiliaryLossCoefficient = recipe.routerAuxLossCoef ?? experts.auxiliaryLossCoefficient
        settings.zLossCoefficient = recipe.routerZLossCoef
        return settings
    }

    private func openCheckpoint() throws(MartletError) -> Checkpoint {
        let checkpoint = try Checkpoint(folder: recipe.model)
        try checkpoint.validate()
        let positions = checkpoint.configuration.maximumPositions
        guard recipe.maxLength <= positions else {
            throw recipe.refusal(
                "max_length", "max_length is more than the model can take",
                because: "it is \(recipe.maxLength), and the model was made for \(positions) positions",
                fix: "write 'max_length: \(positions)' or less")
        }
        return checkpoint
    }

    /// The most tokens of a step.
    private func stepTokens() throws(MartletError) -> Int {
        var product = recipe.maxLength
        for factor in [recipe.perDeviceTrainBatchSize, recipe.gradientAccumulationSteps] {
            let (tokens, overflows) = product.multipliedReportingOverflow(by: factor)
            guard !overflows, tokens < 1 << 40 else {
                throw recipe.refusal(
                    "max_length", "a step would hold too many tokens",
                    because: "it is max_length x per_device_train_batch_size x gradient_accumulation_steps",
                    fix: "lower one of the three")
            }
            product = tokens
        }
        return product
    }

    // MARK: The parts

    /// What is known before any memory is taken: what `plan` tells, and what a run starts from.
    struct Prepared {
        let checkpoint: Checkpoint
        let settings: ModelSettings
        let backend: any Backend
        let data: AssembledData
        let plan: ExecutionPlan
        let memory: MemoryPlan
        /// Bytes in use beside the plan.
        let used: Int
        /// Bytes that both may come to.
        let limit: Int
        /// What a person should know of the way in which it is computed.
        let remarks: [String]
        /// Why `device: auto` ended on the CPU, if it did.
        let deviceReason: String?
        /// What will be trained; without memory.
        let parameters: [Parameter]
        /// Numbers in the whole model, the trained ones included.
        let totalParameterCount: Int
    }

    /// Data comes before the model, so that a bad row is found before memory is taken.
    func prepare(_ text: ModelText) throws(MartletError) -> Prepared {
        let checkpoint = try openCheckpoint(), configuration = checkpoint.configuration
        let settings = try settings(configuration)
        let (backend, reason) = try makeBackend()
        let data = try AssembledData(recipe, text)
        let planner = Planner(configuration, settings, backend)
        // A measure of any plan has the backend take its own buffers, so that they count in the process.
        _ = planner.byteCount(ExecutionPlan(stepTokens: 1, tileTokens: 1, maximumLength: 2))
        let memory = DeviceMemory(of: backend)
        let limit = recipe.memoryLimit ?? memory.used + memory.plannable
        let plan = try planner.plan(
            stepTokens: min(try stepTokens(), data.tokenCount), maximumLength: max(data.longestExample, 2),
            tileTokens: recipe.tileTokens, logitRows: recipe.samplePrompts == 0 ? 0 : 1,
            limit: max(0, limit - memory.used), hostLimit: memory.hostPlannable)
        let parameters = planner.parameters
        let added = parameters.filter { $0.role != .whole }.reduce(0) { $0 + $1.value.count }
        return Prepared(
            checkpoint: checkpoint, settings: settings, backend: backend, data: data, plan: plan,
            memory: planner.table(plan), used: memory.used, limit: limit, remarks: planner.remarks(on: plan),
            deviceReason: reason,
            parameters: parameters,
            totalParameterCount: configuration.parameterCount + added)
    }

    private func makeBackend() throws(MartletError) -> (backend: any Backend, reason: String?) {
        try recipe.device.makeBackend(threads: recipe.threads, isDeterministic: recipe.deterministic)
    }

    /// What the run would do and need.
    package func plan(_ text: ModelText) throws(MartletError) -> RunPlan { try RunPlan(recipe, try prepare(text)) }

    /// Everything, ready for the first step.
    package func parts(_ text: ModelText) throws(MartletError) -> TrainingParts {
        let run = try prepare(text)
        let model = try Model(run.checkpoint, run.settings, run.plan, run.backend)
        let export = ModelExport(recipe: recipe, checkpoint: run.checkpoint, model: model)
        let read = model.loading.map { [TrainingOverview.Row("checkpoint read", $0.text)] } ?? []
        var parts = TrainingParts(
            model: model, training: run.data.training, validation: run.data.validation, memory: run.memory,
            totalParameterCount: run.totalParameterCount, data: run.data.rows + read,
            facts: facts(model, run.deviceReason),
            export: { (folder) throws(MartletError) in try export.write(to: folder) })
        parts.templateDate = text.writtenDate
        parts.remarks = run.remarks + [(run.backend as? CUDABackend)?.tileRemark].compactMap { $0 }
        let samples = try samples(run, model, text)
        parts.samples = { () throws(MartletError) in try samples.write() }
        return parts
    }

    private func samples(_ run: Prepared, _ model: Model, _ text: ModelText) throws(MartletError) -> Samples {
        let count = recipe.samplePrompts ?? (run.plan.keepsWeights ? Samples.defaultCount : 0)
        return try Samples(model, text, run.data.shown, count: count)
    }

    private func facts(_ model: Model, _ deviceReason: String?) -> [TrainingOverview.Row] {
        let c = model.configuration
        var rows: [TrainingOverview.Row] = [
            .init("folder", recipe.model), .init("model type", c.modelType), .init("layers", String(c.layerCount)),
        ]
        if let experts = c.experts {
            rows.append(.init("experts", "\(experts.expertCount) a layer, \(experts.expertsPerToken) a token"))
        }
        return rows + [
            .init("computes on", model.backend.name, note: deviceReason),
            .init("tile", "\(model.plan.tileTokens) tokens"),
        ]
    }
}

extension StepLoader: StepSource {}
