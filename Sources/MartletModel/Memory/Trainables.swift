internal import MartletCore

/// Decides what is trained and carves it: values, gradients, moments.
struct Trainables {
    var parameters: [Parameter] = []
    var applied: [Weight: (a: Tensor, b: Tensor)] = [:]
    private let arena: Arena
    private let dtype: DType
    private let quantizesMoments: Bool

    init(_ c: ModelConfiguration, _ settings: ModelSettings, in arena: Arena, _ dtype: DType) {
        self.arena = arena
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

    private mutating func add(_ c: ModelConfiguration, _ adapter: LoRASettings, isTrained: Bool) {
        for layer in 0..<c.layerCount {
            let weights = Set(c.layerWeights(layer))
            for target in LoRATarget.allCases where adapter.targets.contains(target) {
                let weight = target.weight(layer: layer)
                guard weights.contains(weight) else { continue }
                let shape = c.shape(of: weight).array
                let lead = shape.dropLast(2), O = shape[shape.count - 2], I = shape[shape.count - 1]
                let a = Shape(lead + [adapter.rank, I]), b = Shape(lead + [O, adapter.rank])
                if isTrained {
                    add(weight, .a, group: target.group, a, experts: c.expertCount(of: weight))
                    add(weight, .b, group: target.group, b, experts: c.expertCount(of: weight))
                } else {
                    applied[weight] = (arena.carve(a, dtype, for: .adapters), arena.carve(b, dtype, for: .adapters))
                }
            }
        }
    }

    private mutating func add(_ weight: Weight, _ role: Parameter.Role, group: String, _ shape: Shape, experts: Int?) {
        // Rows of the embedding see very different gradients; with bitsandbytes too they keep float32 moments.
        let quantizes = quantizesMoments && weight != .embedding
        let moment = quantizes ? DType.uint8 : .float32, blocks: Shape = [MomentScales.count(for: shape.count)]
        func scale() -> Tensor { arena.carve(blocks, .float32, for: .optimizer) }
        parameters.append(
            Parameter(
                name: "\(weight.name).\(role.rawValue)", group: group, weight: weight, role: role,
                value: arena.carve(shape, .float32, for: .adapters),
                working: role == .whole || dtype == .float32 ? nil : arena.carve(shape, dtype, for: .adapters),
                gradient: arena.carve(shape, .float32, for: .gradients),
                firstMoment: arena.carve(shape, moment, for: .optimizer),
                secondMoment: arena.carve(shape, moment, for: .optimizer),
                scales: quantizes ? MomentScales(first: scale(), second: scale()) : nil, expertCount: experts))
    }
}
