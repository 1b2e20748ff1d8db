internal import MartletCore

/// Decides what is trained and carves it: values, gradients, moments.
struct Trainables {
    var parameters: [Parameter] = []
    var applied: [Weight: (a: Tensor, b: Tensor)] = [:]
    /// Of the layers whose gradients, and whose optimizer state, live in host memory: the first ones.
    var gradientPieces: [HostPiece] = []
    var statePieces: [HostPiece] = []
    /// The parameters of each layer's adapters, by index.
    var layerParameters: [Range<Int>] = []
    /// Parameters as they are while what lives in host memory visits the device.
    var visiting: [Parameter] = []
    private let memory: Memory
    private let plan: ExecutionPlan
    private let dtype: DType
    private let quantizesMoments: Bool

    init(_ c: ModelConfiguration, _ settings: ModelSettings, _ plan: ExecutionPlan, in memory: Memory, _ dtype: DType) {
        self.memory = memory
        self.plan = plan
        self.dtype = dtype
        quantizesMoments = settings.quantizesMoments
        if settings.method == .full {
            for weight in c.weights where weight.kind != .router { add(c, weight) }
        }
        if settings.trains, settings.trainsRouter {
            for weight in c.weights where weight.kind == .router { add(c, weight) }
        }
        if let adapter = settings.adapter { add(c, adapter, isTrained: settings.method == .lora) }
    }

    private mutating func add(_ c: ModelConfiguration, _ weight: Weight) {
        add(weight, .whole, group: weight.group, c.shape(of: weight), experts: c.expertCount(of: weight))
    }

    /// An adapter's two factors.
    private struct Pair {
        var weight: Weight
        var group: String
        var a, b: Shape
    }

    private func pairs(_ c: ModelConfiguration, _ adapter: LoRASettings, layer: Int) -> [Pair] {
        let weights = Set(c.layerWeights(layer))
        return LoRATarget.allCases.filter { adapter.targets.contains($0) }.compactMap { target in
            let weight = target.weight(layer: layer)
            guard weights.contains(weight) else { return nil }
            let shape = c.shape(of: weight).array
            let lead = shape.dropLast(2), O = shape[shape.count - 2], I = shape[shape.count - 1]
            return Pair(
                weight: weight, group: target.group, a: Shape(lead + [adapter.rank, I]),
                b: Shape(lead + [O, adapter.rank]))
        }
    }

    private mutating func add(_ c: ModelConfiguration, _ adapter: LoRASettings, isTrained: Bool) {
        let layers = (0..<c.layerCount).map { pairs(c, adapter, layer: $0) }
        guard isTrained else {
            for pair in layers.joined() {
                applied[pair.weight] = (
                    memory.device.carve(pair.a, dtype, for: .adapters),
                    memory.device.carve(pair.b, dtype, for: .adapters)
                )
            }
            return
        }
        gradientPieces = pieces(plan.gradientLayersOut, of: layers, .gradients) { shape, _, arena in
            _ = arena.carve(shape, .float32, for: .gradients)
        }
        statePieces = pieces(plan.stateLayersOut, of: layers, .optimizer) { shape, role, arena in
            _ = state(shape, role, quantizes: quantizesMoments, in: arena)
        }
        for (layer, pairs) in layers.enumerated() {
            let first = parameters.count
            for pair in pairs {
                for (role, shape) in [(Parameter.Role.a, pair.a), (.b, pair.b)] {
                    add(
                        pair.weight, role, group: pair.group, shape, experts: c.expertCount(of: pair.weight),
                        gradients: layer < gradientPieces.count ? gradientPieces[layer] : nil,
                        states: layer < statePieces.count ? statePieces[layer] : nil)
                }
            }
            layerParameters.append(first..<parameters.count)
        }
    }

    /// Pieces of the first `count` layers, large enough for what `carve` takes for each factor. On the device two take turns.
    private func pieces(
        _ count: Int, of layers: [[Pair]], _ row: Arena.Row, _ carve: (Shape, Parameter.Role, Arena) -> Void
    ) -> [HostPiece] {
        let sizes = layers.prefix(count).map { pairs in
            let arena = Arena.measuring()
            for pair in pairs {
                carve(pair.a, .a, arena)
                carve(pair.b, .b, arena)
            }
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

    private func state(_ shape: Shape, _ role: Parameter.Role, quantizes: Bool, in arena: Arena) -> State {
        let moment = quantizes ? DType.uint8 : .float32, blocks: Shape = [MomentScales.count(for: shape.count)]
        func scale() -> Tensor { arena.carve(blocks, .float32, for: .optimizer) }
        return State(
            rest: isSplit(role) ? arena.carve(shape, .int16, for: .adapters) : nil,
            first: arena.carve(shape, moment, for: .optimizer), second: arena.carve(shape, moment, for: .optimizer),
            scales: quantizes ? MomentScales(first: scale(), second: scale()) : nil)
    }

    private func isSplit(_ role: Parameter.Role) -> Bool { role != .whole && dtype == .bfloat16 }

    private mutating func add(
        _ weight: Weight, _ role: Parameter.Role, group: String, _ shape: Shape, experts: Int?,
        gradients: HostPiece? = nil, states: HostPiece? = nil
    ) {
        // Rows of the embedding see very different gradients; with bitsandbytes too they keep float32 moments.
        let quantizes = quantizesMoments && weight != .embedding
        let value = memory.device.carve(shape, isSplit(role) ? dtype : .float32, for: .adapters)
        func parameter(gradient: Tensor, accumulator: Tensor, _ state: State) -> Parameter {
            Parameter(
                name: "\(weight.name).\(role.rawValue)", group: group, weight: weight, role: role,
                master: Master(value: value, rest: state.rest), gradient: gradient, accumulator: accumulator,
                firstMoment: state.first, secondMoment: state.second, scales: state.scales, expertCount: experts)
        }
        let gradient = (gradients?.homeArena ?? memory.device).carve(shape, .float32, for: .gradients)
        let accumulator = gradients?.slotArena.carve(shape, .float32, for: .gradients) ?? gradient
        let home = state(shape, role, quantizes: quantizes, in: states?.homeArena ?? memory.device)
        let guest = states.map { state(shape, role, quantizes: quantizes, in: $0.slotArena) } ?? home
        parameters.append(parameter(gradient: gradient, accumulator: accumulator, home))
        visiting.append(parameter(gradient: accumulator, accumulator: accumulator, guest))
    }
}
