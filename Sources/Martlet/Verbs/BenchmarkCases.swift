internal import MartletCore

/// The extents of a layer that ops are measured at.
struct OpSizes {
    /// Tokens, hidden, vocabulary, query heads, key/value heads, head size.
    var T: Int, H: Int, V: Int, Q: Int, G: Int, D: Int
    /// Experts, experts a token, their inner size, LoRA rank.
    var E: Int, K: Int, F: Int, A = 16

    init(_ shapes: OpBenchmark.Shapes, tokens: Int) {
        T = tokens
        switch shapes {
        case .wide: (H, V, Q, G, D, E, K, F) = (512, 8192, 8, 4, 64, 32, 4, 256)
        case .fine: (H, V, Q, G, D, E, K, F) = (512, 8192, 8, 4, 64, 128, 8, 64)
        case .qwen30b: (H, V, Q, G, D, E, K, F) = (2048, 151936, 32, 4, 128, 128, 8, 768)
        }
    }

    var scratch: ScratchShapes {
        var shapes = ScratchShapes()
        (shapes.tokens, shapes.hidden, shapes.vocabulary) = (T, H, V)
        (shapes.queryHeads, shapes.keyValueHeads, shapes.headSize) = (Q, G, D)
        (shapes.experts, shapes.expertsPerToken, shapes.expertInner) = (E, K, F)
        (shapes.widest, shapes.rank) = (max(H, Q * D, 1024), A)
        return shapes
    }
}

/// One op at one shape, ready to run again and again.
struct TimedOp {
    var name: String
    var shape: String
    var flops: Double
    var bytes: Double
    var body: () -> Void
}

/// Memory and cases of the benchmark of ops.
struct TimedOps {
    private let backend: any Backend
    private let s: OpSizes
    private let arena: Arena
    private(set) var cases: [TimedOp] = []
    private let large: [Tensor]

    init(_ backend: any Backend, _ sizes: OpSizes) throws(MartletError) {
        self.backend = backend
        s = sizes
        let measuring = OpTensors(sizes, backend, in: Arena.measuring())
        arena = try backend.makeArena(byteCount: measuring.byteCount)
        let t = OpTensors(sizes, backend, in: arena)
        t.fill(backend)
        large = t.large
        cases = [
            embeddingCases(t), normCases(t), linearCases(t), rotateCases(t), attentionCases(t), routerCases(t),
            expertCases(t), swiGLUCases(t), lossCases(t), optimizerCases(t),
        ].flatMap { $0 }
    }

    /// GFLOP/s of a matrix product of 1024 cubed, and GB/s of an addition far larger than the caches.
    func peaks() throws(MartletError) -> (gigaflops: Double, gigabytes: Double) {
        let add = median { backend.add(large[0], adding: large[1]) }
        return (try TimedOps.gemmPeak(backend), 3 * Double(large[0].byteCount) / add / 1e6)
    }

    /// GFLOP/s of a matrix product of `side` cubed alone, on random numbers.
    static func gemmPeak(_ backend: any Backend, side: Int = 1024) throws(MartletError) -> Double {
        let arena = try backend.makeArena(byteCount: 3 * side * side * backend.computeDType.byteCount)
        let square = (0..<3).map { _ in arena.carve([side, side], backend.computeDType, for: .workspace) }
        for (seed, matrix) in square.enumerated() {
            backend.fillNormal(matrix, standardDeviation: 1, seed: UInt64(seed))
        }
        let gemm = try medianFinished(backend) {
            backend.linear(square[0], Linear(weight_OI: square[1]), firstRow: 0, into: square[2], adds: false)
        }
        return 2 * Double(side * side * side) / gemm / 1e6
    }

    private func size(_ tensors: Tensor...) -> Double { tensors.reduce(0) { $0 + Double($1.byteCount) } }

    private func embeddingCases(_ t: OpTensors) -> [TimedOp] {
        [
            TimedOp(name: "embedding", shape: "T \(s.T) H \(s.H)", flops: 0, bytes: 2 * size(t.x)) {
                backend.embedding(t.ids, t.table, into: t.y)
            }
        ]
    }

    private func normCases(_ t: OpTensors) -> [TimedOp] {
        let shape = "T \(s.T) H \(s.H)", count = Double(s.T * s.H)
        return [
            TimedOp(name: "rmsNorm", shape: shape, flops: 4 * count, bytes: 2 * size(t.x)) {
                backend.rmsNorm(t.x, t.norm, epsilon: 1e-6, into: t.y)
            },
            TimedOp(name: "rmsNormBackward", shape: shape, flops: 10 * count, bytes: 4 * size(t.x)) {
                backend.zero(t.dx)
                backend.rmsNormBackward(t.x, t.norm, epsilon: 1e-6, t.dy, adding: t.dx, accumulating: nil)
            },
        ]
    }

    private func linearCases(_ t: OpTensors) -> [TimedOp] {
        let plain = Linear(weight_OI: t.weight)
        let adapted = Linear(weight_OI: t.weight, adapter: t.adapter)
        let O = t.weight.shape[0], shape = "T \(s.T) I \(s.H) O \(O)"
        let product = 2 * Double(s.T * s.H * O), low = 2 * Double(s.T * s.A * (s.H + O))
        let bytes = size(t.x, t.weight, t.wide)
        return [
            TimedOp(name: "linear", shape: shape, flops: product, bytes: bytes) {
                backend.linear(t.x, plain, firstRow: 0, into: t.wide, adds: false)
            },
            TimedOp(name: "linear", shape: shape + " A \(s.A)", flops: product + low, bytes: bytes) {
                backend.linear(t.x, adapted, firstRow: 0, into: t.wide, adds: false)
            },
            TimedOp(name: "linearBackward", shape: shape + " A \(s.A)", flops: product + 2 * low, bytes: bytes) {
                backend.linearBackward(t.x, adapted, firstRow: 0, t.wide, into: t.dx, adds: false)
            },
        ]
    }

    private func rotateCases(_ t: OpTensors) -> [TimedOp] {
        let shape = "T \(s.T) N \(s.Q) D \(s.D)", norm = HeadNorm(weight_D: t.headNorm, epsilon: 1e-6)
        let count = Double(s.T * s.Q * s.D)
        return [
            TimedOp(name: "rotate", shape: shape, flops: 7 * count, bytes: 2 * size(t.q)) {
                backend.rotate(t.q, norm, t.rope, t.positions, into: t.o)
            },
            TimedOp(name: "rotateBackward", shape: shape, flops: 14 * count, bytes: 3 * size(t.q)) {
                backend.rotateBackward(t.q, norm, t.rope, t.positions, t.dO, into: t.dq)
            },
        ]
    }

    /// Causal: half of the square of scores is computed, 2 products forward and 5 backward.
    private func attentionCases(_ t: OpTensors) -> [TimedOp] {
        let span = [AttentionSpan(queryStart: 0, queryCount: s.T, keyStart: 0, keyCount: s.T)]
        let scale = 1 / Float(s.D).squareRoot(), shape = "T \(s.T) Q \(s.Q) G \(s.G) D \(s.D)"
        let product = Double(s.T) * Double(s.T) * Double(s.Q * s.D), bytes = size(t.q, t.k, t.v, t.o)
        return [
            TimedOp(name: "attention", shape: shape, flops: 2 * product, bytes: bytes) {
                backend.attention(t.q, t.k, t.v, span, scale: scale, into: t.o, logSumExp_TQ: t.logSumExp)
            },
            TimedOp(name: "attentionBackward", shape: shape, flops: 5 * product, bytes: 2 * bytes) {
                backend.attentionBackward(
                    t.q, t.k, t.v, t.o, t.logSumExp, t.dO, span, scale: scale, into: t.dq, adding: t.dk, t.dv)
            },
        ]
    }

    private func routerCases(_ t: OpTensors) -> [TimedOp] {
        let options = RouterOptions(expertsPerToken: s.K, normalizesTopK: true), shape = "T \(s.T) E \(s.E) K \(s.K)"
        backend.route(t.logits, options, into: t.routing)
        return [
            TimedOp(name: "route", shape: shape, flops: 0, bytes: 2 * size(t.logits)) {
                backend.route(t.logits, options, into: t.routing)
            },
            TimedOp(name: "routeBackward", shape: shape, flops: 0, bytes: 2 * size(t.logits)) {
                backend.routeBackward(t.routing, options, t.dweight, nil, into: t.dlogits)
            },
        ]
    }

    private func expertCases(_ t: OpTensors) -> [TimedOp] {
        let plain = Experts(gateUp_EFH: t.gateUp, down_EHF: t.down)
        let adapted = Experts(
            gateUp_EFH: t.gateUp, down_EHF: t.down, gateUpAdapter: t.gateUpAdapter, downAdapter: t.downAdapter)
        let R = Double(s.T * s.K), shape = "T \(s.T) E \(s.E) K \(s.K) F \(s.F)"
        let product = 6 * R * Double(s.F * s.H)
        let low = 2 * R * Double(s.A * (s.H + 2 * s.F)) + 2 * R * Double(s.A * (s.F + s.H))
        let bytes = size(t.gateUp, t.down, t.x, t.y, t.hiddenRows)
        func forward(_ experts: Experts) {
            backend.experts(t.x, t.routing, experts, firstRow: 0, into: t.hiddenRows, adding: t.y)
        }
        forward(plain)
        return [
            TimedOp(name: "experts", shape: shape, flops: product, bytes: bytes) { forward(plain) },
            TimedOp(name: "experts", shape: shape + " A \(s.A)", flops: product + low, bytes: bytes) {
                forward(adapted)
            },
            TimedOp(name: "expertsBackward", shape: shape + " A \(s.A)", flops: product + 2 * low, bytes: bytes) {
                backend.expertsBackward(
                    t.x, t.routing, adapted, firstRow: 0, t.hiddenRows, t.dy, adding: t.dx, into: t.dweight)
            },
        ]
    }

    private func swiGLUCases(_ t: OpTensors) -> [TimedOp] {
        let shape = "T \(s.T) F \(t.gate.shape[1])", count = Double(t.gate.count)
        return [
            TimedOp(name: "swiGLU", shape: shape, flops: 4 * count, bytes: 3 * size(t.gate)) {
                backend.swiGLU(t.gate, t.up, into: t.inner)
            },
            TimedOp(name: "swiGLUBackward", shape: shape, flops: 10 * count, bytes: 5 * size(t.gate)) {
                backend.swiGLUBackward(t.gate, t.up, t.inner, into: t.dgate, t.dup)
            },
        ]
    }

    private func lossCases(_ t: OpTensors) -> [TimedOp] {
        let product = 2 * Double(s.T * s.H) * Double(s.V), shape = "T \(s.T) H \(s.H) V \(s.V)"
        return [
            TimedOp(name: "crossEntropy", shape: shape, flops: product, bytes: size(t.x, t.table)) {
                backend.crossEntropy(t.x, t.table, t.ids, gradientScale: nil, into: t.loss, nil, accumulating: nil)
            },
            TimedOp(name: "crossEntropy", shape: shape + " + dx", flops: 2 * product, bytes: size(t.x, t.x, t.table)) {
                backend.crossEntropy(t.x, t.table, t.ids, gradientScale: 1, into: t.loss, t.dx, accumulating: nil)
            },
        ]
    }

    private func optimizerCases(_ t: OpTensors) -> [TimedOp] {
        let p = t.optimized, n = Double(p[0].count), shape = "N \(p[0].count)"
        return [
            TimedOp(name: "sumOfSquares", shape: shape, flops: 2 * n, bytes: 4 * n) { _ = backend.sumOfSquares(p[1]) },
            TimedOp(name: "adamW", shape: shape, flops: 12 * n, bytes: 28 * n) {
                backend.adamW(p[0], p[1], p[2], p[3], AdamWSettings(), step: 1, learningRate: 1e-6, gradientScale: 1)
            },
        ]
    }
}
