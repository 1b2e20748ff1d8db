internal import MartletCore

/// Decides what is trained and carves it: values, gradients, moments.
struct Trainables {
    var parameters: [Parameter] = []
    var applied: [Weight: (a: Tensor, b: Tensor)] = [:]
    /// Of the layers whose gradients, and whose optimizer state, live in host memory: the first ones.
    var gradientPieces: [HostPiece] = []
    var statePieces: [HostPiece] = []
    /// What is trained of each layer, by index: its adapters, or its weights but the router.
    var layerParameters: [Range<Int>] = []
    /// Parameters as they are while what lives in host memory visits the device.
    var visiting: [Parameter] = []
    private let configuration: ModelConfiguration
    private let memory: Memory
    private let plan: ExecutionPlan
    private let dtype: DType
    private let quantizesMoments: Bool

    init(_ c: ModelConfiguration, _ settings: ModelSettings, _ plan: ExecutionPlan, in memory: Memory, _ dtype: DType) {
        configuration = c
        self.memory = memory
        self.plan = plan
        self.dtype = dtype
        quantizesMoments = settings.quantizesMoments
        let routers = settings.trains && settings.trainsRouter ? c.weights.filter { $0.kind == .router } : []
        if settings.method == .full {
            add(wholes([.embedding]))
            add((0..<c.layerCount).map { wholes(c.layerWeights($0).filter { $0.kind != .router }) })
            add(wholes(c.outerWeights.filter { $0 != .embedding }))
        }
        add(wholes(routers))
        guard let adapter = settings.adapter else { return }
        let layers = (0..<c.layerCount).map { factors(adapter, layer: $0) }
        if settings.method == .lora { add(layers) } else { apply(layers) }
    }

    /// What is to be trained: a weight, or a factor of an adapter on it.
    private struct Part {
        var weight: Weight
        var role: Parameter.Role
        var group: String
        var shape: Shape
    }

    private func wholes(_ weights: [Weight]) -> [Part] {
        weights.map { Part(weight: $0, role: .whole, group: $0.group, shape: configuration.shape(of: $0)) }
    }

    /// A and B of each adapter in a layer.
    private func factors(_ adapter: LoRASettings, layer: Int) -> [Part] {
        let weights = Set(configuration.layerWeights(layer))
        return LoRATarget.allCases.filter(adapter.targets.contains).flatMap { target -> [Part] in
            let weight = target.weight(layer: layer)
            guard weights.contains(weight) else { return [] }
            let shape = configuration.shape(of: weight).array
            let lead = shape.dropLast(2), O = shape[shape.count - 2], I = shape[shape.count - 1]
            return [
                Part(weight: weight, role: .a, group: target.group, shape: Shape(lead + [adapter.rank, I])),
                Part(weight: weight, role: .b, group: target.group, shape: Shape(lead + [O, adapter.rank])),
            ]
        }
    }

    /// Factors that are only applied.
    private mutating func apply(_ layers: [[Part]]) {
        var factors: [Weight: [Tensor]] = [:]
        for part in layers.joined() {
            factors[part.weight, default: []].append(memory.device.carve(part.shape, dtype, for: .adapters))
        }
        applied = factors.mapValues { (a: $0[0], b: $0[1]) }
    }

    /// What is trained of each layer; of the first ones gradients and states may live in host memory.
    private mutating func add(_ layers: [[Part]]) {
        gradientPieces = pieces(plan.gradientLayersOut, of: layers, .gradients) { part, arena in
            _ = arena.carve(part.shape, .float32, for: .gradients)
        }
        statePieces = pieces(plan.stateLayersOut, of: layers, .optimizer) { part, arena in _ = state(part, in: arena) }
        for (layer, parts) in layers.enumerated() {
            let first = parameters.count
            add(
                parts, gradients: layer < gradientPieces.count ? gradientPieces[layer] : nil,
                states: layer < statePieces.count ? statePieces[layer] : nil)
            layerParameters.append(first..<parameters.count)
        }
    }

    /// Pieces of the first `count` layers, large enough for what `carve` takes for each part. On the device two take turns.
    private func pieces(
        _ count: Int, of layers: [[Part]], _ row: Arena.Row, _ carve: (Part, Arena) -> Void
    ) -> [HostPiece] {
        let sizes = layers.prefix(count).map { parts in
            let arena = Arena.measuring()
            for part in parts { carve(part, arena) }
            return arena.byteCount
        }
        let slots = (0..<min(2, sizes.count)).map { _ in
            memory.device.carve([sizes.max() ?? 0], .uint8, for: row)
        }
        return sizes.enumerated().map { layer, size in
            HostPiece(
                home: memory.host.carve([size], .uint8, for: row), slot: slots[layer % 2].rows(0..<size),
                isMeasuring: memory.device.isMeasuring)
        }
    }

    /// What the optimizer remembers, and what only the optimizer reads of a value.
    private struct State {
        var rest: Tensor?
        var first, second: Tensor
        var scales: MomentScales?
    }

    private func state(_ part: Part, in arena: Arena) -> State {
        // Rows of the embedding see very different gradients; with bitsandbytes too they keep float32 moments.
        let quantizes = quantizesMoments && part.weight != .embedding
        let moment = quantizes ? DType.uint8 : .float32, blocks: Shape = [MomentScales.count(for: part.shape.count)]
        func scale() -> Tensor { arena.carve(blocks, .float32, for: .optimizer) }
        return State(
            rest: isSplit(part) ? arena.carve(part.shape, .int16, for: .adapters) : nil,
            first: arena.carve(part.shape, moment, for: .optimizer),
            second: arena.carve(part.shape, moment, for: .optimizer),
            scales: quantizes ? MomentScales(first: scale(), second: scale()) : nil)
    }

    /// Norms are small, and their ops read float32 as well.
    private func isSplit(_ part: Part) -> Bool { dtype == .bfloat16 && !(part.role == .whole && part.weight.isNorm) }

    private mutating func add(_ parts: [Part], gradients: HostPiece? = nil, states: HostPiece? = nil) {
        for part in parts {
            let value = memory.device.carve(part.shape, isSplit(part) ? dtype : .float32, for: .adapters)
            let gradient = (gradients?.homeArena ?? memory.device).carve(part.shape, .float32, for: .gradients)
            let accumulator = gradients?.slotArena.carve(part.shape, .float32, for: .gradients) ?? gradient
            let home = state(part, in: states?.homeArena ?? memory.device)
            let guest = states.map { state(part, in: $0.slotArena) } ?? home
            func parameter(gradient: Tensor, _ state: State) -> Parameter {
                Parameter(
                    name: "\(part.weight.name).\(part.role.rawValue)", group: part.group, weight: part.weight,
                    role: part.role, master: Master(value: value, rest: state.rest), gradient: gradient,
                    accumulator: accumulator, firstMoment: state.first, secondMoment: state.second,
                    scales: state.scales, expertCount: configuration.expertCount(of: part.weight))
            }
            parameters.append(parameter(gradient: gradient, home))
            visiting.append(parameter(gradient: accumulator, guest))
        }
    }
}
