package import MartletCore

extension CPUBackend {
    package func experts(
        _ x_TH: Tensor, _ routing: Routing, _ experts: Experts, firstRow: Int, into gateUp_RF: Tensor,
        _ y_TH: Tensor?, residual_TH: Tensor
    ) {
        let size = ExpertsSize(x_TH, routing, experts)
        precondition(y_TH.map { $0.count == x_TH.count } ?? true)
        precondition(gateUp_RF.count >= size.r * 2 * size.f)
        if let y_TH { set(y_TH, to: residual_TH) }
        guard size.r > 0 else { return }
        var layout = scratch()
        let scratch = ExpertsScratch(&layout, size, trains: false, threads: workers.count)
        let pass = ExpertsForward(
            product: product, loops: loops, size: size, experts: experts, scratch: scratch,
            firstFlat: firstRow * size.k,
            x: x_TH.floats, order: routing.order_R.ints, weight: routing.weight_TK.floats, gateUp: gateUp_RF.floats,
            projects: y_TH != nil)
        findPlaces(size, pass.order, into: scratch.place)
        forEachWave(size, routing.offset_E1.ints, scratch.segments) { wave in
            workers.run(wave.count) { pass.run(wave[$0], $1) }
            guard let y = y_TH?.floats else { return }
            workers.run(over: size.t, by: combinedTokens) { tokens, _ in
                pass.combine(tokens, of: wave, weight: pass.weight, into: y)
            }
        }
    }
}

/// One forward call, as its tasks see it.
private struct ExpertsForward: ExpertsPass {
    let product: MatrixProduct
    let loops: RowLoops
    let size: ExpertsSize
    let experts: Experts
    let scratch: ExpertsScratch
    let firstFlat: Int
    let x: Floats
    let order: Ints
    let weight: Floats
    let gateUp: Floats
    /// False: only the pre-activations are wanted.
    let projects: Bool

    /// gateUp = x W^T (+ adapter), act = silu(gate) * up, and what is to be added to the tokens: act W^T (+ adapter).
    func run(_ segment: ExpertSegment, _ worker: Int) {
        let (n, h, f) = (segment.count, size.h, size.f)
        let input = scratch.wide[worker]
        gather(x, order + segment.start, n, 0..<h, into: input)
        let result = gateUp + segment.start * 2 * f
        let weights = experts.gateUp_EFH.floats + segment.expert * 2 * f * h
        product(n, 2 * f, h, Operand(input, h), Operand(weights, h).transposed, into: result, 2 * f)
        if let adapter = experts.gateUpAdapter {
            let p = scratch.p1 + segment.local * size.a
            dropAndProject(segment, adapter, input, width: h, into: p)
            let b = Operand(adapter.b.floats + segment.expert * 2 * f * adapter.rank, adapter.rank).transposed
            product(
                n, 2 * f, adapter.rank, Operand(p, adapter.rank), b, into: result, 2 * f, alpha: adapter.scale,
                adds: true)
        }
        guard projects else { return }
        let act = scratch.act + segment.local * f
        for i in 0..<n { loops.gatedUnit(f, result + i * 2 * f, result + i * 2 * f + f, into: act + i * f) }
        let sum = scratch.sum + segment.local * h, down = experts.down_EHF.floats + segment.expert * h * f
        product(n, h, f, Operand(act, f), Operand(down, f).transposed, into: sum, h)
        guard let adapter = experts.downAdapter else { return }
        let p = scratch.p2 + segment.local * size.a
        // The activations are not needed any more.
        dropAndProject(segment, adapter, act, width: f, into: p)
        let b = Operand(adapter.b.floats + segment.expert * h * adapter.rank, adapter.rank).transposed
        product(
            n, h, adapter.rank, Operand(p, adapter.rank), b, into: sum, h, alpha: adapter.scale, adds: true)
    }
}

extension LoRA {
    /// The rank, of an adapter of experts or of a projection.
    var rank: Int { b.shape[-1] }
}
