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
            product: product, size: size, experts: experts, scratch: scratch, firstFlat: firstRow * size.k,
            x: x_TH.floats, order: routing.order_R.ints, weight: routing.weight_TK.floats, gateUp: gateUp_RF.floats,
            y: y_TH?.floats)
        forEachWave(size, routing.offset_E1.ints, scratch.segments) { wave in
            workers.run(wave.count) { pass.activate(wave[$0], $1) }
            guard let y = pass.y else { return }
            workers.run(over: size.h, by: hiddenPanel) { panel, worker in
                for i in 0..<wave.count { pass.project(wave[i], panel, into: y, worker) }
            }
        }
    }
}

/// One forward call, as its tasks see it.
private struct ExpertsForward: ExpertsPass {
    let product: MatrixProduct
    let size: ExpertsSize
    let experts: Experts
    let scratch: ExpertsScratch
    let firstFlat: Int
    let x: Floats
    let order: Ints
    let weight: Floats
    let gateUp: Floats
    /// Nil: only the pre-activations are wanted.
    let y: Floats?

    /// First half: gateUp = x W^T (+ adapter), act = silu(gate) * up, and p2 for the down adapter.
    func activate(_ segment: ExpertSegment, _ worker: Int) {
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
        guard y != nil else { return }
        let act = scratch.act + segment.local * f
        for i in 0..<n { gatedUnit(f, result + i * 2 * f, result + i * 2 * f + f, into: act + i * f) }
        guard let adapter = experts.downAdapter else { return }
        let copied = scratch.narrow[worker]
        copied.update(from: act, count: n * f)
        dropAndProject(segment, adapter, copied, width: f, into: scratch.p2 + segment.local * size.a)
    }

    /// Second half, for some columns of the result: y += weight * (act W^T (+ adapter)).
    func project(_ segment: ExpertSegment, _ panel: Range<Int>, into y: Floats, _ worker: Int) {
        let (n, h, f, columns) = (segment.count, size.h, size.f, panel.count)
        let result = scratch.narrow[worker], order = order + segment.start
        let weights = experts.down_EHF.floats + (segment.expert * h + panel.lowerBound) * f
        product(
            n, columns, f, Operand(scratch.act + segment.local * f, f), Operand(weights, f).transposed, into: result,
            columns)
        if let adapter = experts.downAdapter {
            let b = adapter.b.floats + (segment.expert * h + panel.lowerBound) * adapter.rank
            product(
                n, columns, adapter.rank, Operand(scratch.p2 + segment.local * size.a, adapter.rank),
                Operand(b, adapter.rank).transposed, into: result, columns, alpha: adapter.scale, adds: true)
        }
        for i in 0..<n {
            let flat = Int(order[i])
            accumulate(columns, weight[flat], result + i * columns, into: y + flat / size.k * h + panel.lowerBound)
        }
    }
}

extension LoRA {
    /// The rank, of an adapter of experts or of a projection.
    var rank: Int { b.shape[-1] }
}
