internal import MartletCore

/// The tensors that the benchmark of ops works on.
struct OpTensors {
    let ids, positions: Tensor
    let table, x, y, dx, dy, norm, headNorm, weight, wide: Tensor
    let q, k, v, o, dq, dk, dv, dO, logSumExp: Tensor
    let rope: RoPE
    let logits, dlogits, dweight: Tensor
    let routing: Routing
    let gateUp, down, hiddenRows, gate, up, inner, dgate, dup, loss: Tensor
    let adapter, gateUpAdapter, downAdapter: LoRA
    let optimized, large: [Tensor]
    let byteCount: Int
    private let sizes: OpSizes
    private let filled: [Tensor]

    init(_ s: OpSizes, _ backend: any Backend, in arena: Arena) {
        sizes = s
        var all: [Tensor] = []
        func carve(_ shape: Shape) -> Tensor {
            let tensor = arena.carve(shape, for: .workspace)
            all.append(tensor)
            return tensor
        }
        func integers(_ shape: Shape) -> Tensor { arena.carve(shape, .int32, for: .workspace) }
        func lora(_ lead: [Int], _ i: Int, _ o: Int) -> LoRA {
            let a = Shape(lead + [s.A, i]), b = Shape(lead + [o, s.A])
            return LoRA(a: carve(a), b: carve(b), da: carve(a), db: carve(b), scale: 2)
        }
        (ids, positions) = (integers([s.T]), integers([s.T]))
        table = carve([s.V, s.H])
        (x, y, dx, dy) = (carve([s.T, s.H]), carve([s.T, s.H]), carve([s.T, s.H]), carve([s.T, s.H]))
        (norm, headNorm) = (carve([s.H]), carve([s.D]))
        (weight, wide) = (carve([s.Q * s.D, s.H]), carve([s.T, s.Q * s.D]))
        adapter = lora([], s.H, s.Q * s.D)
        (q, o, dq, dO) = (
            carve([s.T, s.Q, s.D]), carve([s.T, s.Q, s.D]), carve([s.T, s.Q, s.D]), carve([s.T, s.Q, s.D])
        )
        (k, v, dk, dv) = (
            carve([s.T, s.G, s.D]), carve([s.T, s.G, s.D]), carve([s.T, s.G, s.D]), carve([s.T, s.G, s.D])
        )
        logSumExp = carve([s.T, s.Q])
        rope = RoPE(cosine_PJ: carve([s.T, s.D / 2]), sine_PJ: carve([s.T, s.D / 2]))
        (logits, dlogits, dweight) = (carve([s.T, s.E]), carve([s.T, s.E]), carve([s.T, s.K]))
        routing = Routing(
            probability_TE: carve([s.T, s.E]), logSumExp_T: carve([s.T]), expert_TK: integers([s.T, s.K]),
            weight_TK: carve([s.T, s.K]), order_R: integers([s.T * s.K]), offset_E1: integers([s.E + 1]))
        (gateUp, down) = (carve([s.E, 2 * s.F, s.H]), carve([s.E, s.H, s.F]))
        gateUpAdapter = lora([s.E], s.H, 2 * s.F)
        downAdapter = lora([s.E], s.F, s.H)
        hiddenRows = carve([s.T * s.K, 2 * s.F])
        let I = s.K * s.F
        (gate, up, inner, dgate, dup) = (
            carve([s.T, I]), carve([s.T, I]), carve([s.T, I]), carve([s.T, I]), carve([s.T, I])
        )
        loss = carve([s.T])
        optimized = (0..<4).map { _ in carve([1 << 22]) }
        large = (0..<2).map { _ in carve([1 << 25]) }
        backend.reserveScratch(for: s.scratch, in: arena)
        filled = all
        byteCount = arena.byteCount
    }

    /// Small random values everywhere, ids in range.
    func fill(_ backend: any Backend) {
        var random = RandomStream(seed: 1)
        let block = (0..<(1 << 16)).map { _ in random.normal() * 0.05 }
        for tensor in filled {
            for start in stride(from: 0, to: tensor.count, by: block.count) {
                let count = min(block.count, tensor.count - start)
                let part = tensor.reshaped([tensor.count]).rows(start..<start + count)
                block.withUnsafeBytes {
                    backend.upload(UnsafeRawBufferPointer(rebasing: $0[..<(count * 4)]), as: .float32, into: part)
                }
            }
        }
        // Squares of moments must not be negative.
        backend.zero(optimized[3])
        let tokens = (0..<sizes.T).map { _ in Int32(random.next() % UInt64(sizes.V)) }
        tokens.withUnsafeBytes { backend.upload($0, as: .int32, into: ids) }
        (0..<Int32(sizes.T)).map { $0 }.withUnsafeBytes { backend.upload($0, as: .int32, into: positions) }
    }
}
