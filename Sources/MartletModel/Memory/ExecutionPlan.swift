package import MartletCore

/// How a run uses its memory: the sizes that are fixed before the first step.
package struct ExecutionPlan: Sendable, Equatable {
    /// The most tokens that one step holds; when generating, the longest context.
    package var stepTokens: Int
    /// Rows that a layer works on at a time; a step is taken through each layer in tiles of this many rows.
    package var tileTokens: Int
    /// The longest sequence: rows of the RoPE table.
    package var maximumLength: Int
    /// The last this-many layers keep their activations for the backward pass; the others make them again.
    package var keptLayers = 0
    /// The last this-many layers keep attention's output at least: a sixth of all that a layer keeps, and what takes the
    /// longest to make again where sequences are long.
    package var keptOutputs = 0
    /// All layers' weights stay decoded in memory, instead of being decoded once a pass.
    package var keepsWeights = false
    /// Temporaries may take memory only to save time.
    package var isRoomy = false
    /// Generation: a key/value cache a layer instead of one buffer for all.
    package var caches = false
    /// Rows of logits that can be read back; the logits of a training step never exist whole.
    package var logitRows = 0

    package init(stepTokens: Int, tileTokens: Int, maximumLength: Int) {
        self.stepTokens = stepTokens
        self.tileTokens = min(tileTokens, stepTokens)
        self.maximumLength = maximumLength
    }

    package var tileCount: Int { ceilDiv(stepTokens, tileTokens) }

    /// What `layers` layers keep.
    package func note(layers: Int) -> String {
        let outputs = min(keptOutputs, layers) - keptLayers
        return "\(keptLayers) of \(layers) layers keep activations, "
            + (outputs > 0 ? "\(outputs) keep attention's output and recompute the rest" : "the others recompute")
    }
}

/// Chooses an execution plan for the memory at hand.
package struct Planner {
    package let configuration: ModelConfiguration
    package let settings: ModelSettings
    package let backend: any Backend

    package init(_ configuration: ModelConfiguration, _ settings: ModelSettings, _ backend: any Backend) {
        self.configuration = configuration
        self.settings = settings
        self.backend = backend
    }

    private static let smallestTile = 128

    /// A plan within `limit` bytes. Free memory is spent on keeping activations, then on keeping decoded weights (the
    /// other way round where weights come over a bus); too little is answered by recomputing, then by smaller tiles.
    package func plan(
        stepTokens: Int, maximumLength: Int, tileTokens: Int? = nil, logitRows: Int = 0, limit: Int
    ) throws(MartletError) -> ExecutionPlan {
        var plan = ExecutionPlan(
            stepTokens: stepTokens, tileTokens: tileTokens ?? backend.preferredTileTokens, maximumLength: maximumLength)
        plan.logitRows = logitRows
        while byteCount(plan) > limit, tileTokens == nil, plan.tileTokens > Planner.smallestTile {
            plan.tileTokens = max(plan.tileTokens / 2, Planner.smallestTile)
        }
        guard byteCount(plan) <= limit else { throw doesNotFit(plan, limit) }
        if backend.fetchesWeightsSlowly { plan = resident(plan, limit) }
        if settings.trains {
            // An output takes S / 2 multiplications a byte to make again, the rest H / 2 and what norms and launches take.
            if plan.maximumLength >= 2 * configuration.hiddenSize { plan = most(plan, \.keptOutputs, limit) }
            plan = most(plan, \.keptLayers, limit)
            plan = most(plan, \.keptOutputs, limit)
        }
        plan = resident(plan, limit)
        var roomy = plan
        roomy.isRoomy = true
        return byteCount(roomy) <= limit ? roomy : plan
    }

    /// The plan with the largest number of layers under `key` that fits.
    private func most(_ plan: ExecutionPlan, _ key: WritableKeyPath<ExecutionPlan, Int>, _ limit: Int) -> ExecutionPlan
    {
        var plan = plan, candidate = plan
        plan[keyPath: key] = largest(upTo: configuration.layerCount) { layers in
            candidate[keyPath: key] = layers
            return byteCount(candidate) <= limit
        }
        return plan
    }

    /// The plan with all weights in memory, if that fits.
    private func resident(_ plan: ExecutionPlan, _ limit: Int) -> ExecutionPlan {
        var resident = plan
        resident.keepsWeights = true
        return byteCount(resident) <= limit ? resident : plan
    }

    /// The memory table of a plan.
    package func table(_ plan: ExecutionPlan) -> MemoryPlan {
        let arena = measure(plan)
        let rows = Arena.Row.allCases.compactMap { row -> MemoryPlan.Row? in
            let bytes = arena.byteCount(of: row)
            return bytes == 0 ? nil : MemoryPlan.Row(row.rawValue, bytes, note: note(on: row, plan))
        }
        return MemoryPlan(rows: rows)
    }

    /// What a person should know of the way in which a plan is computed.
    package func remarks(on plan: ExecutionPlan) -> [String] {
        var shapes = configuration.scratchShapes(plan, settings)
        // Remarks are on experts: other projections' adapters do not bear on them.
        if settings.adapter?.targets.isDisjoint(with: [.expertsGateUp, .expertsDown]) ?? true {
            (shapes.rank, shapes.dropsOut) = (0, false)
        }
        return backend.remarks(on: shapes)
    }

    /// What will be trained, without memory behind it.
    package var parameters: [Parameter] {
        Trainables(configuration, settings, in: .measuring(), backend.computeDType).parameters
    }

    package func byteCount(_ plan: ExecutionPlan) -> Int { measure(plan).byteCount }

    private func measure(_ plan: ExecutionPlan) -> Arena {
        let arena = Arena.measuring()
        _ = ModelMemory(configuration, settings, plan, backend, in: arena)
        return arena
    }

    private func note(on row: Arena.Row, _ plan: ExecutionPlan) -> String? {
        let layers = configuration.layerCount
        return switch row {
        case .weights:
            plan.keepsWeights ? "all layers decoded: it fits, so no pass decodes them again" : "embedding, head, norms"
        case .layer: "layers take turns: all of them decoded would not fit"
        case .hidden:
            settings.trains
                ? "\(layers + 1) x \(plan.stepTokens) tokens, and their gradient" : "\(plan.stepTokens) tokens"
        case .kept: plan.note(layers: layers)
        case .workspace: "tiles of \(plan.tileTokens) tokens"
        case .optimizer: settings.quantizesMoments ? "moments of 8 bits, a scale for each 256" : nil
        case .cache: "\(plan.stepTokens) tokens of context"
        default: nil
        }
    }

    private func doesNotFit(_ plan: ExecutionPlan, _ limit: Int) -> MartletError {
        let needed = byteCount(plan)
        let tokens = largest(upTo: plan.stepTokens) { tokens in
            guard tokens > 0 else { return true }
            var candidate = plan
            candidate.stepTokens = tokens
            candidate.tileTokens = min(plan.tileTokens, tokens)
            return byteCount(candidate) <= limit
        }
        let rows = table(plan).rows.map { "\($0.name) \(formatBytes($0.byteCount))" }.joined(separator: ", ")
        return MartletError(
            "a step of \(plan.stepTokens) tokens needs \(formatBytes(needed)), and \(formatBytes(limit)) may be used",
            in: "the memory plan", because: rows,
            fix: tokens > 0
                ? "use at most \(tokens) tokens a step (max_length x batch x accumulation), or raise memory_limit"
                : "even one token does not fit: raise memory_limit, lower lora_r, write 'optim: adamw_8bit', or use a smaller model"
        )
    }

    /// The largest n in 0...bound that fits, where fitting is monotone and 0 fits.
    private func largest(upTo bound: Int, _ fits: (Int) -> Bool) -> Int {
        var low = 0, high = bound
        while low < high {
            let middle = (low + high + 1) / 2
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        return low
    }
}
