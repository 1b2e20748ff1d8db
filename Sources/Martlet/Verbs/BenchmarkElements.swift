internal import MartletCore

/// Ops on elements alone, and the optimizer's.
extension OpCases {
    /// A dense MLP as wide as the experts of a token together.
    func swiGLU() -> [TimedOp] {
        let F = s.K * s.F, tensors = (0..<5).map { _ in memory.ring([s.T, F]) }
        let (gate, up, y, dgate, dup) = (tensors[0], tensors[1], tensors[2], tensors[3], tensors[4])
        let shape = "T \(s.T) F \(F)", count = Double(gate.count), bytes = Double(gate.byteCount)
        return [
            TimedOp(name: "swiGLU", shape: shape, flops: 4 * count, bytes: 3 * bytes) { i in
                backend.swiGLU(gate[i], up[i], into: y[i])
            },
            TimedOp(name: "swiGLUBackward", shape: shape, flops: 10 * count, bytes: 5 * bytes) { i in
                backend.swiGLUBackward(gate[i], up[i], y[i], into: dgate[i], dup[i])
            },
        ]
    }

    func elements() -> [TimedOp] {
        let x = memory.ring([s.T, s.H]), y = memory.ring([s.T, s.H]), shape = "T \(s.T) H \(s.H)"
        let count = Double(x.count), bytes = Double(x.byteCount)
        return [
            TimedOp(name: "set", shape: shape, bytes: 2 * bytes) { i in backend.set(y[i], to: x[i]) },
            TimedOp(name: "add", shape: shape, flops: count, bytes: 3 * bytes) { i in backend.add(x[i], adding: y[i]) },
            TimedOp(name: "isFinite", shape: shape, bytes: bytes) { i in _ = backend.isFinite(x[i]) },
            TimedOp(name: "zero", shape: shape, bytes: bytes) { i in backend.zero(y[i]) },
        ]
    }

    /// All adapters of a layer.
    func optimizer() -> [TimedOp] {
        let parameters = adapterShapes.map { shape in
            AdamWParameter(
                master: Master(value: memory.normal(shape, 0.02, .float32)),
                gradient: memory.normal(shape, 0.01, .float32),
                firstMoment: memory.zeros(shape), secondMoment: memory.zeros(shape), weightDecay: 0.01)
        }
        let rounded = parameters.map { inEightBits($0) }
        // As adapters are where ops read bfloat16.
        let halves = backend.computeDType == .float32 ? [] : rounded.map { inHalves($0) }
        let gradients = parameters.map(\.gradient), count = parameters.reduce(0) { $0 + $1.master.count }
        let n = Double(count), shape = "\(formatCount(count)) in \(parameters.count)"
        return [
            TimedOp(name: "sumsOfSquares", shape: shape, flops: 2 * n, bytes: 4 * n) { _ in
                _ = backend.sumsOfSquares(of: gradients)
            },
            TimedOp(name: "adamW", shape: shape, flops: 12 * n, bytes: 28 * n) { _ in
                backend.adamW(parameters, AdamWSettings(), step: 1, learningRate: 1e-6, gradientScale: 1)
            },
            TimedOp(name: "adamW", shape: shape + " 8-bit", flops: 12 * n, bytes: 16 * n) { _ in
                backend.adamW(rounded, AdamWSettings(), step: 1, learningRate: 1e-6, gradientScale: 1)
            },
            TimedOp(name: "zero", shape: shape, bytes: 4 * n) { _ in backend.zero(gradients) },
        ]
            + (halves.isEmpty
                ? []
                : [
                    TimedOp(name: "adamW", shape: shape + " 8-bit, halves", flops: 12 * n, bytes: 16 * n) { _ in
                        backend.adamW(halves, AdamWSettings(), step: 1, learningRate: 1e-6, gradientScale: 1)
                    }
                ])
    }

    private func inHalves(_ parameter: AdamWParameter) -> AdamWParameter {
        var copy = parameter
        copy.master = Master(value: memory.normal(copy.master.shape), rest: memory.zeros(copy.master.shape, .int16))
        return copy
    }

    private func inEightBits(_ parameter: AdamWParameter) -> AdamWParameter {
        let shape = parameter.master.shape, scaleCount = MomentScales.count(for: shape.count)
        var copy = parameter
        (copy.firstMoment, copy.secondMoment) = (memory.zeros(shape, .uint8), memory.zeros(shape, .uint8))
        copy.scales = MomentScales(first: memory.zeros([scaleCount]), second: memory.zeros([scaleCount]))
        return copy
    }

    private var adapterShapes: [Shape] {
        let (H, E, F, A) = (s.H, s.E, s.F, s.A), wide = s.Q * s.D, narrow = s.G * s.D
        let projections: [[Shape]] = [(H, wide), (H, narrow), (H, narrow), (wide, H)].map { [[A, $0], [$1, A]] }
        return projections.flatMap { $0 } + [[E, A, H], [E, 2 * F, A], [E, A, F], [E, H, A]]
    }
}
