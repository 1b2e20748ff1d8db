internal import MartletCore

/// Decides what is trained and carves it: values, gradients, moments.
struct Trainables {
    var parameters: [Parameter] = []
    var applied: [Weight: (a: Tensor, b: Tensor)] = [:]
    /// Of the layers whose gradients live in host memory, by layer: all of a layer's in one piece.
    var leaving: [LeavingGradients] = []
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
        let shape = c.shape(of: weight)
        let gradient = memory.device.carve(shape, .float32, for: .gradients)
        add(
            weight, .whole, group: weight.group, shape, experts: c.expertCount(of: weight),
            gradient: (gradient, gradient), state: memory.device)
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
        let sizes = layers.map { pairs in
            pairs.reduce(0) { $0 + LeavingGradients.size(of: $1.a) + LeavingGradients.size(of: $1.b) }
        }
        let slotSize = sizes.prefix(plan.gradientLayersOut).max() ?? 0
        // Two in turns: one is filled while the other leaves.
        let slots = (0..<min(2, plan.gradientLayersOut)).map { _ in
            memory.device.carve([slotSize], .float32, for: .gradients)
        }
        for (layer, pairs) in layers.enumerated() {
            let leaves = layer < plan.gradientLayersOut
            var piece =
                leaves
                ? LeavingGradients(
                    slot: slots[layer % 2].rows(0..<sizes[layer]),
                    home: memory.host.carve([sizes[layer]], .float32, for: .gradients))
                : nil
            let state = layer < plan.stateLayersOut ? memory.host : memory.device
            for pair in pairs {
                for (role, shape) in [(Parameter.Role.a, pair.a), (.b, pair.b)] {
                    let gradient =
                        piece?.take(shape, index: parameters.count)
                        ?? { ($0, $0) }(memory.device.carve(shape, .float32, for: .gradients))
                    add(
                        pair.weight, role, group: pair.group, shape, experts: c.expertCount(of: pair.weight),
                        gradient: gradient, state: state)
                }
            }
            if let piece { leaving.append(piece) }
        }
    }

    /// `state` is where the optimizer's memory of it goes, and what only the optimizer reads of its value.
    private mutating func add(
        _ weight: Weight, _ role: Parameter.Role, group: String, _ shape: Shape, experts: Int?,
        gradient: (home: Tensor, slot: Tensor), state: Arena
    ) {
        // Rows of the embedding see very different gradients; with bitsandbytes too they keep float32 moments.
        let quantizes = quantizesMoments && weight != .embedding
        let moment = quantizes ? DType.uint8 : .float32, blocks: Shape = [MomentScales.count(for: shape.count)]
        func scale() -> Tensor { state.carve(blocks, .float32, for: .optimizer) }
        let isSplit = role != .whole && dtype == .bfloat16
        let value = memory.device.carve(shape, isSplit ? .bfloat16 : .float32, for: .adapters)
        parameters.append(
            Parameter(
                name: "\(weight.name).\(role.rawValue)", group: group, weight: weight, role: role,
                master: Master(value: value, rest: isSplit ? state.carve(shape, .int16, for: .adapters) : nil),
                gradient: gradient.home, accumulator: gradient.slot,
                firstMoment: state.carve(shape, moment, for: .optimizer),
                secondMoment: state.carve(shape, moment, for: .optimizer),
                scales: quantizes ? MomentScales(first: scale(), second: scale()) : nil, expertCount: experts))
    }
}
