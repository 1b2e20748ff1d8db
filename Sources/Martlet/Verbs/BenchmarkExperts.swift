internal import MartletCore

/// How the tokens spread over the experts.
struct ExpertLoad {
    let name: String
    /// The largest expert's rows, over the mean. The others' fall geometrically.
    let largest: Double

    static let balanced = ExpertLoad(name: "balanced", largest: 1)
    static let skewed = ExpertLoad(name: "skewed x4", largest: 4)

    /// Logits [T, E] by which each token takes K different experts, the expert e in K load_e / E of the cases: systematic
    /// sampling, the steps u, u + 1, ... along the experts' shares.
    func logits(_ s: OpSizes) -> [Float] {
        var random = RandomStream(seed: 2), logits = [Float](repeating: 0, count: s.T * s.E)
        let shares = self.shares(s.E).map { $0 * Double(s.K) }
        for t in 0..<s.T {
            var next = Double(random.uniform()), end = 0.0
            for (e, share) in shares.enumerated() {
                end += share
                // Any odd number of steps visits all of a power of two: the largest do not stand side by side.
                let i = t * s.E + e * 37 % s.E
                logits[i] = random.uniform()
                guard end > next else { continue }
                logits[i] += 4
                next += 1
            }
        }
        return logits
    }

    /// largest / E x ratio^e, with the ratio at which they sum up to 1.
    private func shares(_ count: Int) -> [Double] {
        var shares: [Double] = [], low = 0.0, high = 1.0
        for _ in 0..<50 {
            let ratio = (low + high) / 2
            var share = largest / Double(count)
            shares = (0..<count).map { _ in
                defer { share *= ratio }
                return share
            }
            if shares.reduce(0, +) < 1 { low = ratio } else { high = ratio }
        }
        return shares
    }
}

extension OpCases {
    private func makeRouting() -> Routing {
        let tableCount = backend.routingTableCount(rows: s.T * s.K, experts: s.E)
        return Routing(
            probability_TE: memory.zeros([s.T, s.E]), logSumExp_T: memory.zeros([s.T]),
            expert_TK: memory.ids([s.T, s.K]), weight_TK: memory.zeros([s.T, s.K]),
            order_R: memory.ids([s.T * s.K]), offset_E1: memory.ids([s.E + 1]),
            tables: tableCount == 0 ? nil : memory.ids([tableCount]))
    }

    private var routerOptions: RouterOptions { RouterOptions(expertsPerToken: s.K, normalizesTopK: true) }

    func router() -> [TimedOp] {
        let logits = memory.ring([s.T, s.E]), dweight = memory.normal([s.T, s.K], 1, .float32), routing = makeRouting()
        let options = routerOptions, shape = "T \(s.T) E \(s.E) K \(s.K)"
        let statistics = size(routing.probability_TE, routing.logSumExp_T, routing.expert_TK, routing.weight_TK)
        return [
            TimedOp(
                name: "route", shape: shape,
                bytes: Double(logits.byteCount) + statistics + size(routing.order_R, routing.offset_E1)
            ) { i in
                backend.route(logits[i], options, into: routing)
            },
            TimedOp(
                name: "routeBackward", shape: shape, bytes: Double(logits.byteCount) + statistics + size(dweight),
                setUp: { backend.route(logits[0], options, into: routing) }
            ) { i in
                backend.routeBackward(routing, options, dweight, nil, into: logits[i])
            },
        ]
    }

    func experts() -> [TimedOp] {
        let tensors = ExpertTensors(memory, makeRouting())
        var plain = tensors.experts
        (plain.gateUpAdapter, plain.downAdapter) = (nil, nil)
        return [forward(tensors, plain, .balanced)]
            + [ExpertLoad.balanced, .skewed].flatMap {
                [forward(tensors, tensors.experts, $0), backward(tensors, $0)]
            }
    }

    private func forward(_ t: ExpertTensors, _ experts: Experts, _ load: ExpertLoad) -> TimedOp {
        let adapters = [experts.gateUpAdapter, experts.downAdapter].compactMap { $0 }
        return TimedOp(
            name: "experts", shape: shape(load, adapts: !adapters.isEmpty),
            flops: products + (adapters.isEmpty ? 0 : lowProducts),
            bytes: size(t.x, t.y, t.y, t.hidden)
                + usedShare * adapters.reduce(t.weightSize) { $0 + size($1.a, $1.b) },
            setUp: { route(t, load) }
        ) { _ in
            backend.experts(t.x, t.routing, experts, firstRow: 0, into: t.hidden, t.y, residual_TH: t.x)
        }
    }

    /// The gradients of the pre-activations take their place, so those are restored before each call.
    private func backward(_ t: ExpertTensors, _ load: ExpertLoad) -> TimedOp {
        let adapters = [t.experts.gateUpAdapter, t.experts.downAdapter].compactMap { $0 }
        return TimedOp(
            name: "expertsBackward", shape: shape(load, adapts: true), flops: products + 2 * lowProducts,
            bytes: size(t.x, t.dy, t.dx, t.hidden)
                + usedShare * adapters.reduce(t.weightSize) { $0 + trainedSize($1) },
            setUp: {
                route(t, load)
                backend.experts(t.x, t.routing, t.experts, firstRow: 0, into: t.kept, t.y, residual_TH: t.x)
            }, prepare: { backend.set(t.hidden, to: t.kept) }
        ) { _ in
            backend.expertsBackward(
                t.x, t.routing, t.experts, firstRow: 0, t.hidden, t.dy, into: t.dx, t.dweight, gradients: .first)
        }
    }

    private func route(_ t: ExpertTensors, _ load: ExpertLoad) {
        load.logits(s).withUnsafeBytes { backend.upload($0, as: .float32, into: t.logits) }
        backend.route(t.logits, routerOptions, into: t.routing)
    }

    private func shape(_ load: ExpertLoad, adapts: Bool) -> String {
        "T \(s.T) E \(s.E) K \(s.K) F \(s.F)" + (adapts ? " A \(s.A)" : "") + " " + load.name
    }

    /// Experts that can have a row at all.
    private var usedShare: Double { min(1, Double(s.T * s.K) / Double(s.E)) }
    /// Operations of gate, up and down, one way.
    private var products: Double { 6 * Double(s.T * s.K) * Double(s.F * s.H) }
    /// The same of their adapters.
    private var lowProducts: Double { 2 * Double(s.T * s.K) * Double(s.A * (2 * s.H + 3 * s.F)) }
}

/// What a layer's experts work on.
private struct ExpertTensors {
    let experts: Experts
    let routing: Routing
    let logits, x, y, dy, dx, hidden, kept, dweight: Tensor

    init(_ memory: OpMemory, _ routing: Routing) {
        let s = memory.s, rows: Shape = [s.T * s.K, 2 * s.F]
        self.routing = routing
        experts = Experts(
            gateUp_EFH: memory.weight([s.E, 2 * s.F, s.H]), down_EHF: memory.weight([s.E, s.H, s.F]),
            gateUpAdapter: memory.adapter([s.E], rows: s.T * s.K, inputs: s.H, outputs: 2 * s.F),
            downAdapter: memory.adapter([s.E], rows: s.T * s.K, inputs: s.F, outputs: s.H))
        logits = memory.normal([s.T, s.E])
        (x, y) = (memory.normal([s.T, s.H]), memory.normal([s.T, s.H]))
        (dy, dx) = (memory.normal([s.T, s.H]), memory.normal([s.T, s.H]))
        (hidden, kept) = (memory.normal(rows), memory.normal(rows))
        dweight = memory.zeros([s.T, s.K])
    }

    var weightSize: Double { Double(experts.gateUp_EFH.byteCount + experts.down_EHF.byteCount) }
}
