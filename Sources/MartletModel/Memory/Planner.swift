package import MartletCore

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

    /// A plan within `limit` bytes, and `hostLimit` bytes of host memory beside the device's (0: the device has no other).
    ///
    /// Free memory is spent on keeping activations, then on keeping decoded weights (the other way round where weights come
    /// over a bus). Too little is answered in the order of what it costs: hidden states, attention's outputs and, as far as the
    /// bus has time, what follows attention wait in host memory, and what does not is recomputed; gradients and then optimizer
    /// state live there, tiles are halved as long as that is cheap, ops make do with less for temporaries, and tiles become
    /// smaller still.
    package func plan(
        stepTokens: Int, maximumLength: Int, tileTokens: Int? = nil, logitRows: Int = 0, limit: Int, hostLimit: Int = 0
    ) throws(MartletError) -> ExecutionPlan {
        guard settings.method != .full || backend.computeDType != .float16 else {
            throw MartletError(
                "this device cannot train whole weights", in: backend.name,
                because: "it computes in float16, and weights are kept as bfloat16 and what is missing to float32",
                fix: "write 'method: lora', or 'device: cpu'")
        }
        var start = ExecutionPlan(
            stepTokens: stepTokens, tileTokens: tileTokens ?? backend.preferredTileTokens, maximumLength: maximumLength)
        start.logitRows = logitRows
        let room = Room(planner: self, limit: limit, hostLimit: settings.trains ? hostLimit : 0)
        guard let plan = fitting(start, halvesTiles: tileTokens == nil, in: room) else {
            throw doesNotFit(start, halvesTiles: tileTokens == nil, in: room)
        }
        return room.filling(plan)
    }

    /// The plan that costs least of those that fit; nil where none does.
    private func fitting(_ start: ExecutionPlan, halvesTiles: Bool, in room: Room) -> ExecutionPlan? {
        var resident = start
        resident.keepsWeights = true
        // Where weights come over a bus, all else gives way to them.
        let starts = backend.fetchesWeightsSlowly ? [resident, start] : [start]
        for candidate in starts {
            for outputsLeave in [true, false] {
                let plan = room.fitting(candidate, halvesTiles: halvesTiles, outputsLeave: outputsLeave)
                if let plan { return plan }
            }
        }
        return nil
    }

    /// The memory table of a plan.
    package func table(_ plan: ExecutionPlan) -> MemoryPlan {
        let memory = measure(plan)
        let rows = Arena.Row.allCases.compactMap { row -> MemoryPlan.Row? in
            let bytes = memory.device.byteCount(of: row)
            return bytes == 0 ? nil : MemoryPlan.Row(row.rawValue, bytes, note: note(on: row, plan))
        }
        let hostRows = Arena.Row.allCases.compactMap { row -> MemoryPlan.Row? in
            let bytes = memory.host.byteCount(of: row)
            return bytes == 0 ? nil : MemoryPlan.Row(row.rawValue, bytes, note: hostNote(on: row, plan))
        }
        return MemoryPlan(rows: rows, hostRows: hostRows)
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
        let plan = ExecutionPlan(stepTokens: 1, tileTokens: 1, maximumLength: 1)
        return Trainables(configuration, settings, plan, in: .measuring(), backend.computeDType).parameters
    }

    /// Bytes of the backend's memory.
    package func byteCount(_ plan: ExecutionPlan) -> Int { measure(plan).device.byteCount }
    /// Bytes of host memory beside that.
    package func hostByteCount(_ plan: ExecutionPlan) -> Int { measure(plan).host.byteCount }

    fileprivate func hostMemory(_ plan: ExecutionPlan) -> Arena { measure(plan).host }

    private func measure(_ plan: ExecutionPlan) -> Memory {
        let memory = Memory.measuring()
        _ = ModelMemory(configuration, settings, plan, backend, in: memory)
        return memory
    }

    private func note(on row: Arena.Row, _ plan: ExecutionPlan) -> String? {
        let layers = configuration.layerCount
        return switch row {
        case .weights:
            plan.keepsWeights ? "all layers decoded: it fits, so no pass decodes them again" : "embedding, head, norms"
        case .layer: "layers take turns: all of them decoded would not fit"
        case .gradients:
            plan.gradientLayersOut > 0
                ? "\(layers - plan.gradientLayersOut) of \(layers) layers, and two that the others share" : nil
        case .hidden:
            !settings.trains
                ? "\(plan.stepTokens) tokens"
                : plan.hiddenOut
                    ? "two layers' in turns, and their gradient"
                    : "\(layers + 1) x \(plan.stepTokens) tokens, and their gradient"
        case .kept: plan.note(layers: layers)
        case .workspace:
            "tiles of \(plan.tileTokens) tokens"
                + (plan.room == .scant ? ", temporaries as small as they may be" : "")
        case .optimizer: settings.quantizesMoments ? "moments of 8 bits, a scale for each 256" : nil
        case .cache: "\(plan.stepTokens) tokens of context"
        default: nil
        }
    }

    private func hostNote(on row: Arena.Row, _ plan: ExecutionPlan) -> String? {
        let layers = configuration.layerCount
        return switch row {
        case .adapters: "the lower halves of \(plan.stateLayersOut) of \(layers) layers' float32 numbers"
        case .optimizer: "\(plan.stateLayersOut) of \(layers) layers, read and written over the bus by the optimizer"
        case .gradients: "\(plan.gradientLayersOut) of \(layers) layers, read over the bus by the optimizer"
        case .hidden, .kept: "between layers' forward and backward pass, copied behind other layers' work"
        default: nil
        }
    }

    private func doesNotFit(_ start: ExecutionPlan, halvesTiles: Bool, in room: Room) -> MartletError {
        /// With fewer tokens, or so many MiB more of the device's or the host's memory.
        func fitting(tokens: Int? = nil, more: Int = 0, hostMore: Int = 0) -> ExecutionPlan? {
            var start = start
            start.stepTokens = tokens ?? start.stepTokens
            start.tileTokens = min(start.tileTokens, start.stepTokens)
            var roomier = room
            roomier.limit += more << 20
            roomier.hostLimit += room.hostLimit == 0 ? 0 : hostMore << 20
            return self.fitting(start, halvesTiles: halvesTiles, in: roomier)
        }
        /// The least that fits, up to what no machine has.
        func least(_ fits: (Int) -> Bool) -> Int? {
            let most = 1 << 26
            return fits(most) ? most - Room.largest(upTo: most) { fits(most - $0) } : nil
        }
        let tokens = Room.largest(upTo: start.stepTokens - 1) { $0 == 0 || fitting(tokens: $0) != nil }
        let more = least { fitting(more: $0) != nil } ?? 0
        let hostMore = room.hostLimit == 0 ? nil : least { fitting(hostMore: $0) != nil }
        let rows = fitting(more: more).map(table)?.rows.map { "\($0.name) \(formatBytes($0.byteCount))" } ?? []
        let raise =
            "raise memory_limit, if the device has it, by at least \(more) MiB"
            + (hostMore.map { ", or free \($0) MiB more of host memory" } ?? "")
        return MartletError(
            "a step of \(start.stepTokens) tokens needs \(formatBytes(room.limit + more << 20)), and \(formatBytes(room.limit)) may be used"
                + (room.hostLimit > 0 ? " beside \(formatBytes(room.hostLimit)) of host memory" : ""),
            in: "the memory plan", because: rows.joined(separator: ", "),
            fix: tokens > 0
                ? "use at most \(tokens) tokens a step (max_length x batch x accumulation), or \(raise)"
                : "even one token does not fit: \(raise), \(settings.method == .full ? "write 'method: lora'" : "lower lora_r"), "
                    + "write 'optim: adamw_8bit', or use a smaller model"
        )
    }
}

extension ModelConfiguration {
    /// Multiplications and additions of all layers' forward pass over a step.
    fileprivate func forwardOperations(_ plan: ExecutionPlan) -> Double {
        let T = Double(plan.stepTokens), sequence = Double(min(plan.maximumLength, plan.stepTokens))
        let met = (0..<layerCount).reduce(0.0) { sum, layer in
            layerWeights(layer).reduce(sum) { sum, weight in
                let shape = shape(of: weight)
                let share = weight.isExperts ? experts?.expertsPerToken ?? 0 : 1
                return weight.isNorm ? sum : sum + Double(shape[-1] * shape[-2] * share)
            }
        }
        return 2 * T * (met + Double(layerCount * queryHeadCount * headSize) * sequence)
    }
}

/// The memory that a plan has to fit into.
private struct Room {
    let planner: Planner
    var limit, hostLimit: Int

    private static let smallestTile = 128
    /// Tiles that cost little more than larger ones; below, every pass reads the weights noticeably more often, and what
    /// waits in host memory comes cheaper.
    private static let cheapTile = 8192

    /// Bytes that go to host memory in the time of one operation of a forward pass: 55 GB/s for some 600 TFLOP/s of an H200, with
    /// a twentieth to spare, since to wait costs four times what is won. Of other GPUs the ratio is much the same.
    private static let busBytesPerOperation = 8.8e-5

    private var layers: Int { planner.configuration.layerCount }

    private func fits(_ plan: ExecutionPlan) -> Bool {
        planner.byteCount(plan) <= limit && (hostLimit == 0 || planner.hostByteCount(plan) <= hostLimit)
    }

    /// The plan with what it takes to make it fit, least cost first; nil where nothing does.
    func fitting(_ plan: ExecutionPlan, halvesTiles: Bool, outputsLeave: Bool) -> ExecutionPlan? {
        var plan = plan
        if hostLimit > 0, !fits(everythingKept(plan)) {
            plan = moving(plan, \.hiddenOut)
            // Of short sequences an output is made again in the time that it takes to bring it.
            let isLong = plan.maximumLength >= planner.configuration.hiddenSize
            if outputsLeave, isLong { plan = moving(plan, \.outputsOut) }
        }
        for tilesLeave in [true, false] {
            var candidate = plan
            if tilesLeave {
                // How many is known when all else is.
                candidate.tilesOut = min(1, sendingTiles(plan).tilesOut)
                guard candidate.tilesOut > 0 else { continue }
            }
            // A few are not worth their places on the device; and state that had to leave, too, takes the bus's time.
            if let fitting = fitting(candidate, halvesTiles, downTo: Room.cheapTile),
                !tilesLeave || sendingTiles(fitting).tilesOut > layers / 4
            {
                return fitting
            }
            guard !tilesLeave else { continue }
            // What an update needs hides behind the forward pass; attention's backward pass in parts does not (a third longer
            // at 4096 tokens).
            candidate.room = .scant
            // Small tiles cost more than making outputs again.
            return fitting(candidate, halvesTiles, downTo: plan.outputsOut ? Room.cheapTile : Room.smallestTile)
        }
        return nil
    }

    /// The plan with optimizer state and gradients in host memory, of as few layers as suffice, and tiles halved if that is not
    /// enough.
    private func fitting(_ plan: ExecutionPlan, _ halvesTiles: Bool, downTo smallest: Int) -> ExecutionPlan? {
        var plan = plan
        // Gradients first: they leave during the backward pass, when the bus has time.
        if hostLimit > 0 {
            for key in [\ExecutionPlan.gradientLayersOut, \.stateLayersOut] where !fits(plan) {
                plan[keyPath: key] = layers
            }
        }
        while !fits(plan), halvesTiles, plan.tileTokens > smallest {
            plan.tileTokens = max(plan.tileTokens / 2, smallest)
        }
        guard fits(plan) else { return nil }
        plan.stateLayersOut = fewest(plan, \.stateLayersOut)
        // Where the bus has time to carry tiles, it has for gradients, and memory is worth more.
        if plan.tilesOut == 0 { plan.gradientLayersOut = fewest(plan, \.gradientLayersOut) }
        return plan
    }

    /// What is left over spent on time.
    func filling(_ plan: ExecutionPlan) -> ExecutionPlan {
        var plan = plan
        if planner.settings.trains {
            // An output takes S / 2 multiplications a byte to make again, the rest H / 2 and what norms and launches take.
            if plan.maximumLength >= 2 * planner.configuration.hiddenSize, !plan.outputsOut {
                plan = movingOtherOutputs(most(plan, \.keptOutputs))
            }
            var staying = plan
            staying.tilesOut = 0
            // Where the places of tiles that leave would have room for the last layers' activations, none leaves.
            if most(staying, \.keptLayers).keptLayers == layers { plan = staying }
            plan = most(most(plan, \.keptLayers), \.keptOutputs)
            if plan.tilesOut > 0 { plan = sendingTiles(plan) }
        }
        var resident = plan
        resident.keepsWeights = true
        if fits(resident) { plan = resident }
        for room in [ScratchRoom.usual, .ample] {
            var candidate = plan
            candidate.room = room
            if fits(candidate) { plan = candidate }
        }
        guard planner.backend.keepsLowProducts, plan.keptLayers == layers else { return plan }
        var everything = plan
        everything.keepsEverything = true
        return fits(everything) ? everything : plan
    }

    /// The plan with the largest number of layers under `key` that fits; it fits as it is.
    private func most(_ plan: ExecutionPlan, _ key: WritableKeyPath<ExecutionPlan, Int>) -> ExecutionPlan {
        var plan = plan, candidate = plan
        plan[keyPath: key] += Room.largest(upTo: layers - plan[keyPath: key]) { more in
            candidate[keyPath: key] = plan[keyPath: key] + more
            return fits(candidate)
        }
        return plan
    }

    /// The outputs that are not kept wait in host memory, where it has no room for all of them but for those.
    private func movingOtherOutputs(_ plan: ExecutionPlan) -> ExecutionPlan {
        guard hostLimit > 0, plan.hiddenOut else { return plan }
        var moved = plan, candidate = plan
        (moved.outputsOut, candidate.outputsOut) = (true, true)
        // Their two places on the device are some outputs less.
        moved.keptOutputs = Room.largest(upTo: plan.keptOutputs) { count in
            candidate.keptOutputs = count
            return planner.byteCount(candidate) <= limit
        }
        return fits(moved) ? moved : plan
    }

    /// The plan with as many tiles in host memory as the bus carries there behind the forward pass, beside what it carries
    /// anyway: to wait for the bus takes longer than to make them again.
    private func sendingTiles(_ plan: ExecutionPlan) -> ExecutionPlan {
        var moved = plan
        moved.tilesOut = 0
        guard hostLimit > 0, plan.hiddenOut, plan.keptLayers < layers else { return moved }
        let host = planner.hostMemory(moved), work = planner.configuration.forwardOperations(plan)
        moved.tilesOut = 1
        let piece = planner.hostMemory(moved).byteCount - host.byteCount
        let bus = Int(work * Room.busBytesPerOperation) - (host.byteCount - host.byteCount(of: .gradients))
        let most = min(bus, hostLimit / 4 * 3 - host.byteCount) / piece
        moved.tilesOut = max(0, min(most, plan.tileCount(layers: layers) - TileMemory.slotCount))
        return moved
    }

    private func everythingKept(_ plan: ExecutionPlan) -> ExecutionPlan {
        var plan = plan
        plan.keptLayers = layers
        return plan
    }

    /// The plan with something in host memory, if there is room.
    private func moving(_ plan: ExecutionPlan, _ what: WritableKeyPath<ExecutionPlan, Bool>) -> ExecutionPlan {
        var moved = plan
        moved[keyPath: what] = true
        return planner.hostByteCount(moved) <= hostLimit ? moved : plan
    }

    /// The fewest layers of which `count` says that something is out; all of them fit.
    private func fewest(_ plan: ExecutionPlan, _ count: WritableKeyPath<ExecutionPlan, Int>) -> Int {
        let back = Room.largest(upTo: plan[keyPath: count]) { back in
            var candidate = plan
            candidate[keyPath: count] -= back
            return fits(candidate)
        }
        return plan[keyPath: count] - back
    }

    /// The largest n in 0...bound that fits, where fitting is monotone and 0 fits.
    static func largest(upTo bound: Int, _ fits: (Int) -> Bool) -> Int {
        var low = 0, high = bound
        while low < high {
            let middle = (low + high + 1) / 2
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        return low
    }
}
