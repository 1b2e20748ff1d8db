package import MartletCore

/// Routed rows that are in work at a time, which bounds the scratch memory.
let waveRows = 4096
/// Rows of one expert that one task takes; also the rows of a matrix product.
let segmentRows = 256
/// Columns of the hidden state that one task of a wave's second half owns.
let hiddenPanel = 128

/// The extents of one call: `r` routed rows of `t` tokens, `h` hidden, `f` inner, `e` experts, `k` a token, `a` rank.
struct ExpertsSize {
    var t: Int
    var h: Int
    var f: Int
    var e: Int
    var k: Int
    var a: Int
    var r: Int { t * k }

    init(_ shapes: ScratchShapes) {
        (t, h, f) = (shapes.tokens, shapes.hidden, shapes.expertInner)
        (e, k, a) = (shapes.experts, shapes.expertsPerToken, shapes.rank)
    }

    init(_ x: Tensor, _ routing: Routing, _ experts: Experts) {
        e = experts.down_EHF.shape[0]
        h = experts.down_EHF.shape[1]
        f = experts.down_EHF.shape[2]
        t = x.count / max(1, h)
        k = routing.expert_TK.count / max(1, t)
        a = max(experts.gateUpAdapter?.a.shape[1] ?? 0, experts.downAdapter?.a.shape[1] ?? 0)
        precondition(x.count == t * h && experts.gateUp_EFH.count == e * 2 * f * h && routing.offset_E1.count == e + 1)
    }
}

/// With W = min(R, 4096): the segments of a wave (3 (E + W / 256 + 1) ints); of every routed row the activations (F)
/// and A values for each of p1 = A1 dropout(x) and p2 = A2 dropout(act), and if it trains 2F for the pre-activations'
/// gradients and 2A more; for every thread 256 rows of max(H, F) and of F.
struct ExpertsScratch {
    let segments: Ints
    let act: Floats
    let p1: Floats
    let p2: Floats
    let dgateUp: Floats
    /// s dgateUp B1
    let q1: Floats
    /// s dy B2, then times the routing weight
    let q2: Floats
    let wide: PerWorker
    let narrow: PerWorker
    let extra: PerWorker

    init(_ scratch: inout Scratch, _ size: ExpertsSize, trains: Bool, threads: Int) {
        let rows = min(size.r, waveRows), segment = min(rows, segmentRows)
        segments = scratch.ints(3 * (size.e + rows / segmentRows + 1))
        act = scratch.floats(rows * size.f)
        p1 = scratch.floats(rows * size.a)
        p2 = scratch.floats(rows * size.a)
        dgateUp = scratch.floats(trains ? rows * 2 * size.f : 0)
        q1 = scratch.floats(trains ? rows * size.a : 0)
        q2 = scratch.floats(trains ? rows * size.a : 0)
        let width = max(size.h, size.f, hiddenPanel)
        wide = scratch.perWorker(threads, segment * width)
        narrow = scratch.perWorker(threads, segment * max(size.f, hiddenPanel))
        extra = scratch.perWorker(threads, trains ? segment * max(size.f, hiddenPanel) : 0)
    }
}

/// Consecutive rows of `order_R` that one expert has in a wave: at most 256.
struct ExpertSegment {
    var expert: Int
    /// Position in `order_R`.
    var start: Int
    var count: Int
    /// Position in the wave, which is where its rows stand in the scratch memory.
    var local: Int
}

/// A wave: a stretch of `order_R`, cut into segments.
struct ExpertWave {
    let table: Ints
    var start = 0
    var count = 0

    subscript(i: Int) -> ExpertSegment {
        let entry = table + 3 * i
        return ExpertSegment(
            expert: Int(entry[0]), start: Int(entry[1]), count: Int(entry[2]), local: Int(entry[1]) - start)
    }
}

extension CPUBackend {
    package func experts(
        _ x_TH: Tensor, _ routing: Routing, _ experts: Experts, firstRow: Int, into gateUp_RF: Tensor,
        adding y_TH: Tensor?
    ) {
        let size = ExpertsSize(x_TH, routing, experts)
        precondition(y_TH.map { $0.count == x_TH.count } ?? true)
        precondition(gateUp_RF.count >= size.r * 2 * size.f)
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

    func forEachWave(_ size: ExpertsSize, _ offset: Ints, _ table: Ints, _ body: (ExpertWave) -> Void) {
        var expert = 0
        for start in stride(from: 0, to: size.r, by: waveRows) {
            let end = min(size.r, start + waveRows)
            var wave = ExpertWave(table: table, start: start), row = start
            while row < end {
                while Int(offset[expert + 1]) <= row { expert += 1 }
                let count = min(segmentRows, min(end, Int(offset[expert + 1])) - row)
                let entry = table + 3 * wave.count
                (entry[0], entry[1], entry[2]) = (Int32(expert), Int32(row), Int32(count))
                wave.count += 1
                row += count
            }
            body(wave)
        }
    }
}

/// One forward call, as its tasks see it.
private struct ExpertsForward {
    let product: MatrixProduct
    let size: ExpertsSize
    let experts: Experts
    let scratch: ExpertsScratch
    /// The flat index t * K + k of the tile's first row, in the step.
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
        let order = order + segment.start, input = scratch.wide[worker]
        for i in 0..<n { (input + i * h).update(from: x + Int(order[i]) / size.k * h, count: h) }
        let result = gateUp + segment.start * 2 * f
        let weights = experts.gateUp_EFH.floats + segment.expert * 2 * f * h
        product(n, 2 * f, h, Operand(input, h), Operand(weights, h).transposed, into: result, 2 * f)
        if let adapter = experts.gateUpAdapter {
            let p = scratch.p1 + segment.local * size.a
            dropAndProject(input, h, order, n, adapter, segment.expert, into: p)
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
        dropAndProject(copied, f, order, n, adapter, segment.expert, into: scratch.p2 + segment.local * size.a)
    }

    /// p = dropout(input) A^T; the input is dropped in place.
    private func dropAndProject(
        _ input: Floats, _ width: Int, _ order: Ints, _ n: Int, _ adapter: LoRA, _ expert: Int, into p: Floats
    ) {
        if let mask = DropoutMask(adapter.dropout) {
            for i in 0..<n { mask.apply(input + i * width, width, row: firstFlat + Int(order[i]), width: width) }
        }
        let a = adapter.a.floats + expert * adapter.rank * width
        product(n, adapter.rank, width, Operand(input, width), Operand(a, width).transposed, into: p, adapter.rank)
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
