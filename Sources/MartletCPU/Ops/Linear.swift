package import MartletCore

/// Tiles that matrix products are cut into for the threads: rows x columns of the result.
private let tileRows = 512
private let tileColumns = 256
/// Rows that dropout copies at a time.
private let dropRows = 64
/// Rows of a product with an adapter's A or B where nothing is copied.
private let skinnyRows = 256

/// rows x rank for A dropout(x), the same for s dy B in the backward pass, and for each thread dropped-out rows
/// (64 x width).
struct LinearScratch {
    let p: Floats
    let q: Floats
    let dropped: PerWorker

    init(_ scratch: inout Scratch, rows: Int, width: Int, rank: Int, threads: Int) {
        p = scratch.floats(rows * rank)
        q = scratch.floats(rows * rank)
        dropped = scratch.perWorker(threads, rank == 0 ? 0 : dropRows * width)
    }
}

/// The sizes of one call: T rows, I inputs, O outputs, A rank.
private struct LinearSize {
    let t: Int
    let i: Int
    let o: Int
    let a: Int

    init(_ x: Tensor, _ layer: Linear) {
        (o, i) = (layer.weight_OI.shape[0], layer.weight_OI.shape[1])
        t = x.count / max(1, i)
        a = layer.adapter?.a.shape[0] ?? 0
        precondition(x.count == t * i, "linear: \(x.shape) into \(layer.weight_OI.shape)")
        if let adapter = layer.adapter {
            precondition(
                adapter.a.count == a * i && adapter.b.count == o * a, "LoRA: \(adapter.a.shape), \(adapter.b.shape)")
        }
    }

    func scratch(in backend: CPUBackend) -> LinearScratch {
        var scratch = backend.scratch()
        return LinearScratch(&scratch, rows: t, width: i, rank: a, threads: a == 0 ? 0 : backend.workers.count)
    }
}

extension CPUBackend {
    package func linear(_ x_TI: Tensor, _ layer: Linear, firstRow: Int, into y_TO: Tensor, adds: Bool) {
        let size = LinearSize(x_TI, layer)
        precondition(y_TO.count == size.t * size.o)
        guard size.t > 0 else { return }
        let (i, o, a) = (size.i, size.o, size.a)
        let x = x_TI.floats, y = y_TO.floats, weight = layer.weight_OI.floats, bias = layer.bias_O?.floats
        let scratch = size.scratch(in: self)
        if let adapter = layer.adapter { projectDown(x, adapter, size, firstRow: firstRow, scratch) }
        forEachTile(size.t, o) { rows, columns, _ in
            let tile = y + rows.lowerBound * o + columns.lowerBound
            product(
                rows.count, columns.count, i, Operand(x + rows.lowerBound * i, i),
                Operand(weight + columns.lowerBound * i, i).transposed, into: tile, o, adds: adds)
            if let adapter = layer.adapter {
                product(
                    rows.count, columns.count, a, Operand(scratch.p + rows.lowerBound * a, a),
                    Operand(adapter.b.floats + columns.lowerBound * a, a).transposed, into: tile, o,
                    alpha: adapter.scale, adds: true)
            }
            guard let bias else { return }
            for row in 0..<rows.count { accumulate(columns.count, 1, bias + columns.lowerBound, into: tile + row * o) }
        }
    }

    package func linearBackward(
        _ x_TI: Tensor, _ layer: Linear, firstRow: Int, _ dy_TO: Tensor, into dx_TI: Tensor?, adds: Bool,
        gradients: Accumulation
    ) {
        let size = LinearSize(x_TI, layer)
        precondition(dy_TO.count == size.t * size.o)
        if gradients == .first { zero(layer.gradients) }
        guard size.t > 0 else { return }
        let scratch = size.scratch(in: self)
        let x = x_TI.floats, dy = dy_TO.floats
        if let adapter = layer.adapter {
            if adapter.db != nil { projectDown(x, adapter, size, firstRow: firstRow, scratch) }
            workers.run(over: size.t, by: skinnyRows) { rows, _ in
                product(
                    rows.count, size.a, size.o, Operand(dy + rows.lowerBound * size.o, size.o),
                    Operand(adapter.b.floats, size.a), into: scratch.q + rows.lowerBound * size.a, size.a,
                    alpha: adapter.scale)
            }
        }
        if let dx_TI { inputGradient(dy, layer, size, firstRow: firstRow, into: dx_TI.floats, adds: adds, scratch) }
        if let adapter = layer.adapter { adapterGradients(x, dy, adapter, size, firstRow: firstRow, scratch) }
        weightGradients(x, dy, layer, size)
    }

    /// p = dropout(x) A^T
    private func projectDown(
        _ x: Floats, _ adapter: LoRA, _ size: LinearSize, firstRow: Int, _ scratch: LinearScratch
    ) {
        let mask = DropoutMask(adapter.dropout)
        let (i, a) = (size.i, size.a)
        workers.run(over: size.t, by: mask == nil ? skinnyRows : dropRows) { rows, worker in
            var input = x + rows.lowerBound * i
            if let mask {
                let dropped = scratch.dropped[worker]
                dropped.update(from: input, count: rows.count * i)
                mask.apply(rows: rows.count, dropped, width: i, firstRow: firstRow + rows.lowerBound)
                input = dropped
            }
            product(
                rows.count, a, i, Operand(input, i), Operand(adapter.a.floats, i).transposed,
                into: scratch.p + rows.lowerBound * a, a)
        }
    }

    /// dx (+)= dy W + dropout'(q A)
    private func inputGradient(
        _ dy: Floats, _ layer: Linear, _ size: LinearSize, firstRow: Int, into dx: Floats, adds: Bool,
        _ scratch: LinearScratch
    ) {
        let (i, o, a) = (size.i, size.o, size.a)
        let weight = layer.weight_OI.floats, mask = DropoutMask(layer.adapter?.dropout)
        forEachTile(size.t, i) { rows, columns, _ in
            let tile = dx + rows.lowerBound * i + columns.lowerBound
            product(
                rows.count, columns.count, o, Operand(dy + rows.lowerBound * o, o),
                Operand(weight + columns.lowerBound, i),
                into: tile, i, adds: adds)
            guard let adapter = layer.adapter, mask == nil else { return }
            product(
                rows.count, columns.count, a, Operand(scratch.q + rows.lowerBound * a, a),
                Operand(adapter.a.floats + columns.lowerBound, i), into: tile, i, adds: true)
        }
        guard let adapter = layer.adapter, let mask else { return }
        workers.run(over: size.t, by: dropRows) { rows, worker in
            let part = scratch.dropped[worker]
            product(
                rows.count, i, a, Operand(scratch.q + rows.lowerBound * a, a), Operand(adapter.a.floats, i), into: part,
                i)
            mask.apply(rows: rows.count, part, width: i, firstRow: firstRow + rows.lowerBound)
            accumulate(rows.count * i, 1, part, into: dx + rows.lowerBound * i)
        }
    }

    /// dA += q^T dropout(x), dB += s dy^T p; a task owns columns of A or rows of B and sums over all rows in order.
    private func adapterGradients(
        _ x: Floats, _ dy: Floats, _ adapter: LoRA, _ size: LinearSize, firstRow: Int, _ scratch: LinearScratch
    ) {
        let (t, i, o, a) = (size.t, size.i, size.o, size.a)
        let mask = DropoutMask(adapter.dropout)
        if let da = adapter.da?.floats {
            workers.run(over: i, by: 256) { columns, worker in
                let width = columns.count, input = x + columns.lowerBound
                guard let mask else {
                    return product(
                        a, width, t, Operand(scratch.q, a).transposed, Operand(input, i), into: da + columns.lowerBound,
                        i,
                        adds: true)
                }
                let dropped = scratch.dropped[worker]
                for row in stride(from: 0, to: t, by: dropRows) {
                    let count = min(dropRows, t - row)
                    for r in 0..<count {
                        (dropped + r * width).update(from: input + (row + r) * i, count: width)
                        mask.apply(
                            dropped + r * width, width, row: firstRow + row + r, column: columns.lowerBound, width: i)
                    }
                    product(
                        a, width, count, Operand(scratch.q + row * a, a).transposed, Operand(dropped, width),
                        into: da + columns.lowerBound, i, adds: true)
                }
            }
        }
        if let db = adapter.db?.floats {
            workers.run(over: o, by: 256) { outputs, _ in
                product(
                    outputs.count, a, t, Operand(dy + outputs.lowerBound, o).transposed, Operand(scratch.p, a),
                    into: db + outputs.lowerBound * a, a, alpha: adapter.scale, adds: true)
            }
        }
    }

    /// dW += dy^T x, db += column sums of dy
    private func weightGradients(_ x: Floats, _ dy: Floats, _ layer: Linear, _ size: LinearSize) {
        let (t, i, o) = (size.t, size.i, size.o)
        if let dweight = layer.dweight_OI?.floats {
            forEachTile(o, i) { outputs, inputs, _ in
                product(
                    outputs.count, inputs.count, t, Operand(dy + outputs.lowerBound, o).transposed,
                    Operand(x + inputs.lowerBound, i), into: dweight + outputs.lowerBound * i + inputs.lowerBound, i,
                    adds: true)
            }
        }
        if let dbias = layer.dbias_O { addRows(t, o, dy, into: dbias.floats) }
    }

    /// Runs `body(rows, columns, worker)` over the tiles of a rows x columns result.
    func forEachTile(_ rows: Int, _ columns: Int, _ body: (Range<Int>, Range<Int>, Int) -> Void) {
        let across = ceilDiv(columns, tileColumns)
        workers.run(ceilDiv(rows, tileRows) * across) { task, worker in
            let row = task / across * tileRows, column = task % across * tileColumns
            body(row..<min(rows, row + tileRows), column..<min(columns, column + tileColumns), worker)
        }
    }
}
