internal import MartletCore

/// The ops of `Backend`, in the flow's order, in groups that share tensors. What is counted as operations and bytes is
/// what the op's definition needs, whatever a backend does besides.
struct OpCases {
    let memory: OpMemory
    var backend: any Backend { memory.backend }
    var s: OpSizes { memory.s }

    static var groups: [(OpMemory) -> [TimedOp]] {
        [
            { OpCases(memory: $0).vocabulary() }, { OpCases(memory: $0).norms() },
            { OpCases(memory: $0).projections() }, { OpCases(memory: $0).rotations() },
            { OpCases(memory: $0).attention() }, { OpCases(memory: $0).router() }, { OpCases(memory: $0).experts() },
            { OpCases(memory: $0).swiGLU() }, { OpCases(memory: $0).elements() }, { OpCases(memory: $0).optimizer() },
        ]
    }

    func size(_ tensors: Tensor?...) -> Double { tensors.reduce(0) { $0 + Double($1?.byteCount ?? 0) } }

    /// What a backward pass reads of an adapter, and its gradients, read and written.
    func trainedSize(_ adapter: LoRA) -> Double {
        size(adapter.a, adapter.b) + 2 * size(adapter.da, adapter.db)
    }

    // MARK: Embedding and loss

    private func vocabulary() -> [TimedOp] {
        var random = RandomStream(seed: 1)
        let ids = memory.ids([s.T]) { _ in Int(random.next() % UInt64(s.V)) }
        let table = memory.weight([s.V, s.H]), dtable = memory.zeros([s.V, s.H])
        return embedding(ids, table, dtable) + loss(ids, table, dtable)
    }

    private func embedding(_ ids: Tensor, _ table: Tensor, _ dtable: Tensor) -> [TimedOp] {
        let x = memory.ring([s.T, s.H]), shape = "T \(s.T) H \(s.H)", bytes = Double(x.byteCount)
        return [
            TimedOp(name: "embedding", shape: shape, bytes: 2 * bytes) { i in
                backend.embedding(ids, table, into: x[i])
            },
            TimedOp(
                name: "embeddingBackward", shape: shape, flops: Double(x.count), bytes: bytes + 8 * Double(x.count)
            ) { i in
                backend.embeddingBackward(ids, x[i], accumulating: dtable)
            },
        ]
    }

    private func loss(_ ids: Tensor, _ head: Tensor, _ dhead: Tensor) -> [TimedOp] {
        let x = memory.normal([s.T, s.H]), dx = memory.normal([s.T, s.H]), loss = memory.zeros([s.T])
        let product = 2 * Double(s.T * s.H) * Double(s.V), shape = "T \(s.T) H \(s.H) V \(s.V)"
        let bytes = size(x, head, loss), scale = 1 / Float(s.T)
        return [
            TimedOp(name: "crossEntropy", shape: shape, flops: product, bytes: bytes) { _ in
                backend.crossEntropy(x, head, ids, gradientScale: nil, into: loss, nil, accumulating: nil)
            },
            TimedOp(name: "crossEntropy", shape: shape + " dx", flops: 2 * product, bytes: bytes + size(dx)) { _ in
                backend.crossEntropy(x, head, ids, gradientScale: scale, into: loss, dx, accumulating: nil)
            },
            TimedOp(
                name: "crossEntropy", shape: shape + " dx dW", flops: 3 * product,
                bytes: bytes + size(dx, dhead, dhead)
            ) { _ in
                backend.crossEntropy(x, head, ids, gradientScale: scale, into: loss, dx, accumulating: dhead)
            },
        ]
    }

    // MARK: Norms and projections

    private func norms() -> [TimedOp] {
        let x = memory.ring([s.T, s.H]), y = memory.ring([s.T, s.H]), dx = memory.ring([s.T, s.H])
        let weight = memory.normal([s.H]), shape = "T \(s.T) H \(s.H)"
        let count = Double(x.count), bytes = Double(x.byteCount)
        return [
            TimedOp(name: "rmsNorm", shape: shape, flops: 4 * count, bytes: 2 * bytes) { i in
                backend.rmsNorm(x[i], weight, epsilon: 1e-6, into: y[i])
            },
            TimedOp(name: "rmsNormBackward", shape: shape, flops: 10 * count, bytes: 4 * bytes) { i in
                backend.rmsNormBackward(x[i], weight, epsilon: 1e-6, y[i], adding: dx[i], accumulating: nil)
            },
        ]
    }

    /// Of the queries and of attention's output, with adapters, and of the router, without.
    private func projections() -> [TimedOp] {
        let width = s.Q * s.D
        return projection(s.H, width) + (width == s.H ? [] : projection(width, s.H))
            + projection(s.H, s.E, adapts: false)
    }

    private func projection(_ I: Int, _ O: Int, adapts: Bool = true) -> [TimedOp] {
        let x = memory.normal([s.T, I]), y = memory.normal([s.T, O]), dx = memory.normal([s.T, I])
        let weight = memory.weight([O, I]), adapter = adapts ? memory.adapter(rows: s.T, inputs: I, outputs: O) : nil
        let plain = Linear(weight_OI: weight), layer = Linear(weight_OI: weight, adapter: adapter)
        let product = 2 * Double(s.T * I * O), low = adapts ? 2 * Double(s.T * s.A * (I + O)) : 0
        let shape = "T \(s.T) I \(I) O \(O)", adapted = shape + (adapts ? " A \(s.A)" : "")
        let forward = { (layer: Linear, shape: String, low: Double) in
            let bytes = size(x, weight, y, layer.adapter?.a, layer.adapter?.b)
            return TimedOp(name: "linear", shape: shape, flops: product + low, bytes: bytes) { _ in
                backend.linear(x, layer, firstRow: 0, into: y, adds: false)
            }
        }
        let bytes = size(y, weight, dx) + (adapter.map { size(x) + trainedSize($0) } ?? 0)
        return [forward(plain, shape, 0)] + (adapts ? [forward(layer, adapted, low)] : []) + [
            TimedOp(
                name: "linearBackward", shape: adapted, flops: product + 2 * low, bytes: bytes,
                setUp: { backend.linear(x, layer, firstRow: 0, into: y, adds: false) }
            ) { _ in
                backend.linearBackward(x, layer, firstRow: 0, y, into: dx, adds: false, gradients: .first)
            }
        ]
    }

    // MARK: Attention

    private func rotations() -> [TimedOp] {
        let shape: Shape = [s.T, s.Q, s.D], label = "T \(s.T) N \(s.Q) D \(s.D)"
        let x = memory.ring(shape), y = memory.ring(shape), dx = memory.ring(shape)
        let norm = HeadNorm(weight_D: memory.normal([s.D]), epsilon: 1e-6), positions = memory.ids([s.T]) { $0 }
        let table = { memory.normal([s.T, s.D / 2], 0.7, .float32) }, rope = RoPE(cosine_PJ: table(), sine_PJ: table())
        let count = Double(x.count), bytes = Double(x.byteCount), tables = size(rope.cosine_PJ, rope.sine_PJ)
        return [
            TimedOp(name: "rotate", shape: label, flops: 7 * count, bytes: 2 * bytes + tables) { i in
                backend.rotate(x[i], norm, rope, positions, into: y[i])
            },
            TimedOp(name: "rotateBackward", shape: label, flops: 14 * count, bytes: 3 * bytes + tables) { i in
                backend.rotateBackward(x[i], norm, rope, positions, y[i], into: dx[i])
            },
        ]
    }

    /// One sequence, and eight packed. Causal: half of each square of scores is computed, in 2 products forward and 5
    /// backward.
    private func attention() -> [TimedOp] {
        let queries: Shape = [s.T, s.Q, s.D], keys: Shape = [s.T, s.G, s.D]
        let q = memory.normal(queries), k = memory.normal(keys), v = memory.normal(keys), o = memory.normal(queries)
        let logSumExp = memory.zeros([s.T, s.Q]), dO = memory.normal(queries), dq = memory.normal(queries)
        let dk = memory.normal(keys), dv = memory.normal(keys), scale = 1 / Float(s.D).squareRoot()
        let bytes = size(q, k, v, o, logSumExp)
        return [1, 8].filter { $0 <= s.T }.flatMap { sequences in
            let spans = self.spans(sequences)
            let shape = "T \(s.T) Q \(s.Q) G \(s.G) D \(s.D)" + (sequences > 1 ? " in \(sequences)" : "")
            let product = spans.reduce(0) { $0 + Double($1.queryCount * $1.queryCount) } * Double(s.Q * s.D)
            let forward = {
                backend.attention(q, k, v, spans, scale: scale, into: o, logSumExp_TQ: logSumExp)
            }
            return [
                TimedOp(name: "attention", shape: shape, flops: 2 * product, bytes: bytes) { _ in forward() },
                TimedOp(
                    name: "attentionBackward", shape: shape, flops: 5 * product,
                    bytes: bytes + size(dO, dq) + 2 * size(dk, dv), setUp: forward
                ) { _ in
                    backend.attentionBackward(
                        q, k, v, o, logSumExp, dO, spans, scale: scale, into: dq, adding: dk, dv)
                },
            ]
        }
    }

    private func spans(_ sequences: Int) -> [AttentionSpan] {
        (0..<sequences).map { i in
            let start = s.T * i / sequences, count = s.T * (i + 1) / sequences - start
            return AttentionSpan(queryStart: start, queryCount: count, keyStart: start, keyCount: count)
        }
    }
}
