package import MartletCore

extension CPUBackend {
    package func expertsBackward(
        _ x_TH: Tensor, _ routing: Routing, _ experts: Experts, firstRow: Int, _ gateUp_RF: Tensor, _ dy_TH: Tensor,
        into dx_TH: Tensor, _ dweight_TK: Tensor, gradients: Accumulation
    ) {
        let size = ExpertsSize(x_TH, routing, experts)
        precondition(dy_TH.count == x_TH.count && dx_TH.count == x_TH.count && dweight_TK.count == size.r)
        if gradients == .first { zero(experts.gradients) }
        zero(dx_TH)
        guard size.r > 0 else { return }
        var layout = scratch()
        let scratch = ExpertsScratch(&layout, size, trains: true, threads: workers.count)
        let pass = ExpertsBackward(
            product: product, loops: loops, size: size, experts: experts, scratch: scratch,
            firstFlat: firstRow * size.k,
            x: x_TH.floats, order: routing.order_R.ints, weight: routing.weight_TK.floats, gateUp: gateUp_RF.floats,
            dy: dy_TH.floats, dx: dx_TH.floats, dweight: dweight_TK.floats)
        let hiddenTasks = pass.trainsHidden ? ceilDiv(size.h, hiddenPanel) : 0
        let innerTasks = pass.trainsInner ? ceilDiv(2 * size.f, hiddenPanel) : 0
        findPlaces(size, pass.order, into: scratch.place)
        forEachWave(size, routing.offset_E1.ints, scratch.segments) { wave in
            workers.run(wave.count) { pass.differentiate(wave[$0], $1) }
            workers.run(hiddenTasks + innerTasks + ceilDiv(size.t, combinedTokens)) { task, worker in
                guard task < hiddenTasks + innerTasks else {
                    let first = (task - hiddenTasks - innerTasks) * combinedTokens
                    let tokens = first..<min(size.t, first + combinedTokens)
                    return pass.combine(tokens, of: wave, weight: nil, into: pass.dx)
                }
                let first = (task < hiddenTasks ? task : task - hiddenTasks) * hiddenPanel
                for i in 0..<wave.count {
                    if task < hiddenTasks {
                        pass.hiddenColumns(wave[i], first..<min(size.h, first + hiddenPanel), worker)
                    } else {
                        pass.innerColumns(wave[i], first..<min(2 * size.f, first + hiddenPanel), worker)
                    }
                }
            }
        }
    }
}

/// One backward call, as its tasks see it. A wave's first half works on segments: from dy to the gradient of each routed
/// row's input. Its second half adds these to their tokens, and makes the parameters' gradients by columns, each task
/// walking all segments in order, so that sums over rows have one owner and one order.
private struct ExpertsBackward: ExpertsPass {
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
    let dy: Floats
    let dx: Floats
    let dweight: Floats

    /// Whether a parameter's gradient has columns or rows of the hidden state, or of the inner one.
    var trainsHidden: Bool {
        experts.gateUpAdapter?.da != nil || experts.dgateUp_EFH != nil || experts.downAdapter?.db != nil
            || experts.ddown_EHF != nil
    }
    var trainsInner: Bool { experts.gateUpAdapter?.db != nil || experts.downAdapter?.da != nil }

    // MARK: First half

    /// dact = down'(dy); dweight = <act, dact>, because <dy, down(act)> is the same number; then, times the weight,
    /// through silu(gate) * up; and the low-rank values p1, p2, q1, q2 that the second half needs.
    func differentiate(_ segment: ExpertSegment, _ worker: Int) {
        let (n, h, f) = (segment.count, size.h, size.f)
        let order = order + segment.start, wide = scratch.wide[worker], dact = scratch.narrow[worker]
        gather(dy, order, n, 0..<h, into: wide)
        let weights = experts.down_EHF.floats + segment.expert * h * f
        product(n, f, h, Operand(wide, h), Operand(weights, f), into: dact, f)
        if let adapter = experts.downAdapter {
            addDownAdapter(segment, adapter, dy: wide, into: dact, scratch.extra[worker])
        }
        activationGradients(segment, dact)
        if let adapter = experts.downAdapter {
            let q = scratch.q2 + segment.local * size.a
            for i in 0..<n {
                copy(adapter.rank, q + i * adapter.rank, into: q + i * adapter.rank, scale: weight[Int(order[i])])
            }
            if adapter.db != nil {
                var act = scratch.act + segment.local * f
                if adapter.dropout != nil {
                    scratch.extra[worker].update(from: act, count: n * f)
                    act = scratch.extra[worker]
                }
                dropAndProject(segment, adapter, act, width: f, into: scratch.p2 + segment.local * size.a)
            }
        }
        inputGradient(segment, wide)
    }

    /// What is to be added to the tokens' dx: dgateUp W + dropout'(q1 A); and p1, where the adapter trains.
    private func inputGradient(_ segment: ExpertSegment, _ wide: Floats) {
        let (n, h, f) = (segment.count, size.h, size.f), sum = scratch.sum + segment.local * h
        let dgateUp = Operand(scratch.dgateUp + segment.local * 2 * f, 2 * f)
        product(n, h, 2 * f, dgateUp, Operand(experts.gateUp_EFH.floats + segment.expert * 2 * f * h, h), into: sum, h)
        guard let adapter = experts.gateUpAdapter else { return }
        let rank = adapter.rank, q = scratch.q1 + segment.local * size.a
        product(
            n, rank, 2 * f, dgateUp, Operand(adapter.b.floats + segment.expert * 2 * f * rank, rank), into: q, rank,
            alpha: adapter.scale)
        let a = Operand(adapter.a.floats + segment.expert * rank * h, h)
        if let mask = DropoutMask(adapter.dropout) {
            product(n, h, rank, Operand(q, rank), a, into: wide, h)
            drop(mask, segment, wide, 0..<h, width: h)
            accumulate(n * h, 1, wide, into: sum)
        } else {
            product(n, h, rank, Operand(q, rank), a, into: sum, h, adds: true)
        }
        if adapter.db != nil {
            gather(x, order + segment.start, n, 0..<h, into: wide)
            dropAndProject(segment, adapter, wide, width: h, into: scratch.p1 + segment.local * size.a)
        }
    }

    /// q2 = s dy B, dact += dropout'(q2 A)
    private func addDownAdapter(
        _ segment: ExpertSegment, _ adapter: LoRA, dy: Floats, into dact: Floats, _ part: Floats
    ) {
        let (n, h, f, rank) = (segment.count, size.h, size.f, adapter.rank)
        let q = scratch.q2 + segment.local * size.a
        product(
            n, rank, h, Operand(dy, h), Operand(adapter.b.floats + segment.expert * h * rank, rank), into: q, rank,
            alpha: adapter.scale)
        let a = Operand(adapter.a.floats + segment.expert * rank * f, f)
        guard let mask = DropoutMask(adapter.dropout) else {
            return product(n, f, rank, Operand(q, rank), a, into: dact, f, adds: true)
        }
        product(n, f, rank, Operand(q, rank), a, into: part, f)
        drop(mask, segment, part, 0..<f, width: f)
        accumulate(n * f, 1, part, into: dact)
    }

    private func activationGradients(_ segment: ExpertSegment, _ dact: Floats) {
        let f = size.f
        for i in 0..<segment.count {
            let flat = Int(order[segment.start + i])
            let gate = gateUp + (segment.start + i) * 2 * f, dgate = scratch.dgateUp + (segment.local + i) * 2 * f
            let act = scratch.act + (segment.local + i) * f, d = dact + i * f
            loops.gatedUnit(f, gate, gate + f, into: act)
            dweight[flat] = dot(f, act, d)
            copy(f, d, into: d, scale: weight[flat])
            loops.gatedUnitBackward(f, gate, gate + f, d, into: dgate, dgate + f)
        }
    }

    // MARK: Second half

    /// For columns of the hidden state: dA of gate and up, dB of down, and the weights' own gradients.
    func hiddenColumns(_ segment: ExpertSegment, _ panel: Range<Int>, _ worker: Int) {
        let (n, h, f, e, columns) = (segment.count, size.h, size.f, segment.expert, panel.count)
        let first = panel.lowerBound, order = order + segment.start, part = scratch.narrow[worker]
        let dgateUp = Operand(scratch.dgateUp + segment.local * 2 * f, 2 * f)
        if experts.gateUpAdapter?.da != nil || experts.dgateUp_EFH != nil {
            gather(x, order, n, panel, into: part)
            let input = Operand(part, columns)
            if let dw = experts.dgateUp_EFH?.floats {
                product(2 * f, columns, n, dgateUp.transposed, input, into: dw + e * 2 * f * h + first, h, adds: true)
            }
            if let adapter = experts.gateUpAdapter, let da = adapter.da?.floats {
                if let mask = DropoutMask(adapter.dropout) { drop(mask, segment, part, panel, width: h) }
                let q = Operand(scratch.q1 + segment.local * size.a, adapter.rank).transposed
                product(adapter.rank, columns, n, q, input, into: da + e * adapter.rank * h + first, h, adds: true)
            }
        }
        if experts.downAdapter?.db != nil || experts.ddown_EHF != nil { downRows(segment, panel, part) }
    }

    /// dB += s (weight dy)^T p2 and dW += (weight dy)^T act, for some rows of the down projection.
    private func downRows(_ segment: ExpertSegment, _ panel: Range<Int>, _ part: Floats) {
        let (n, h, f, columns) = (segment.count, size.h, size.f, panel.count)
        let firstRow = segment.expert * h + panel.lowerBound, order = order + segment.start
        gather(dy, order, n, panel, into: part)
        for i in 0..<n { copy(columns, part + i * columns, into: part + i * columns, scale: weight[Int(order[i])]) }
        let dout = Operand(part, columns).transposed
        if let dw = experts.ddown_EHF?.floats {
            product(
                columns, f, n, dout, Operand(scratch.act + segment.local * f, f), into: dw + firstRow * f, f, adds: true
            )
        }
        if let adapter = experts.downAdapter, let db = adapter.db?.floats {
            let rank = adapter.rank
            product(
                columns, rank, n, dout, Operand(scratch.p2 + segment.local * size.a, rank), into: db + firstRow * rank,
                rank,
                alpha: adapter.scale, adds: true)
        }
    }

    /// For columns of gate and up: dB += s dgateUp^T p1; for columns of the activations: dA += q2^T dropout(act).
    func innerColumns(_ segment: ExpertSegment, _ panel: Range<Int>, _ worker: Int) {
        let (n, f, e, first) = (segment.count, size.f, segment.expert, panel.lowerBound)
        if let adapter = experts.gateUpAdapter, let db = adapter.db?.floats {
            let rank = adapter.rank, d = Operand(scratch.dgateUp + segment.local * 2 * f + first, 2 * f).transposed
            product(
                panel.count, rank, n, d, Operand(scratch.p1 + segment.local * size.a, rank),
                into: db + (e * 2 * f + first) * rank, rank, alpha: adapter.scale, adds: true)
        }
        guard first < f, let adapter = experts.downAdapter, let da = adapter.da?.floats else { return }
        let columns = first..<min(f, panel.upperBound), rank = adapter.rank
        var act = Operand(scratch.act + segment.local * f + first, f)
        if let mask = DropoutMask(adapter.dropout) {
            let copied = scratch.narrow[worker]
            for i in 0..<n { (copied + i * columns.count).update(from: act.start + i * f, count: columns.count) }
            drop(mask, segment, copied, columns, width: f)
            act = Operand(copied, columns.count)
        }
        let q = Operand(scratch.q2 + segment.local * size.a, rank).transposed
        product(rank, columns.count, n, q, act, into: da + e * rank * f + first, f, adds: true)
    }
}
