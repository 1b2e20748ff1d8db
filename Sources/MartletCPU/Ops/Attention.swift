package import MartletCore

/// Rows of a block, counting each query once for each head of its group: for them, a tile of keys is packed once.
private let blockRows = 512
/// Rows of a score tile, and its keys.
private let tileRows = 128
private let tileKeys = 256
/// Distance of two rows of a score tile: not a multiple of 4 KB over any four rows, which would share their cache lines.
private let scoreStride = tileKeys + 16

/// For every thread, with M = max(512, Q / G) rounded down to whole queries and N likewise of 128: three [M, D] blocks
/// (queries, outputs or their gradients), two statistics a row, two [N, 272] tiles of scores, and three packed tiles of
/// keys or values (256 x D).
struct AttentionScratch {
    let queries: PerWorker
    let outputs: PerWorker
    let gradients: PerWorker
    let statistics: PerWorker
    let scores: PerWorker
    let dscores: PerWorker
    let keysAcross: PerWorker
    let valuesAcross: PerWorker
    let keys: PerWorker

    init(_ scratch: inout Scratch, shapes: ScratchShapes, threads: Int) {
        guard shapes.queryHeads > 0 && shapes.keyValueHeads > 0 else {
            self.init(&scratch, group: 0, size: 0, threads: 0)
            return
        }
        let group = shapes.queryHeads / shapes.keyValueHeads
        self.init(&scratch, group: group, size: shapes.headSize, threads: threads)
    }

    init(_ scratch: inout Scratch, group: Int, size: Int, threads: Int) {
        let rows = wholeQueries(in: blockRows, group) * group, tile = wholeQueries(in: tileRows, group) * group
        queries = scratch.perWorker(threads, rows * size)
        outputs = scratch.perWorker(threads, rows * size)
        gradients = scratch.perWorker(threads, rows * size)
        statistics = scratch.perWorker(threads, 2 * rows)
        scores = scratch.perWorker(threads, tile * scoreStride)
        dscores = scratch.perWorker(threads, tile * scoreStride)
        keysAcross = scratch.perWorker(threads, PackedOperand.count(size, tileKeys))
        valuesAcross = scratch.perWorker(threads, PackedOperand.count(size, tileKeys))
        keys = scratch.perWorker(threads, PackedOperand.count(tileKeys, size))
    }
}

/// Whole queries, at least one, in so many rows.
private func wholeQueries(in rows: Int, _ group: Int) -> Int { max(1, rows / max(1, group)) }

extension CPUBackend {
    package func attention(
        _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ spans: [AttentionSpan], scale: Float,
        into o_TQD: Tensor, logSumExp_TQ: Tensor
    ) {
        guard q_TQD.count > 0 else { return }
        let pass = AttentionPass(self, q_TQD, k_UGD, v_UGD, o_TQD, logSumExp_TQ, scale: scale)
        let blockCount = spans.reduce(0) { $0 + ceilDiv($1.queryCount, pass.queriesPerBlock) }
        workers.run(blockCount * pass.keyValueHeads) { task, worker in
            // The last blocks see the most keys: they go first, so that the threads end together.
            var block = blockCount - 1 - task / pass.keyValueHeads
            for span in spans {
                let blocks = ceilDiv(span.queryCount, pass.queriesPerBlock)
                if block < blocks {
                    return pass.forward(pass.block(block, of: span), head: task % pass.keyValueHeads, worker)
                }
                block -= blocks
            }
        }
    }

    package func attentionBackward(
        _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ o_TQD: Tensor, _ logSumExp_TQ: Tensor,
        _ do_TQD: Tensor, _ spans: [AttentionSpan], scale: Float,
        into dq_TQD: Tensor, adding dk_UGD: Tensor, _ dv_UGD: Tensor
    ) {
        guard q_TQD.count > 0 else { return }
        precondition(
            zip(spans, spans.dropFirst()).allSatisfy { $0.keyStart + $0.keyCount <= $1.keyStart },
            "spans that share keys would add to them at the same time")
        let pass = AttentionPass(self, q_TQD, k_UGD, v_UGD, o_TQD, logSumExp_TQ, scale: scale)
        let gradients = AttentionGradients(
            dout: do_TQD.floats, dq: dq_TQD.floats, dk: dk_UGD.floats, dv: dv_UGD.floats)
        // A task owns one head's keys of one span, and walks the queries that see them in order.
        workers.run(spans.count * pass.keyValueHeads) { task, worker in
            let span = spans[task / pass.keyValueHeads]
            for block in 0..<ceilDiv(span.queryCount, pass.queriesPerBlock) {
                pass.backward(pass.block(block, of: span), head: task % pass.keyValueHeads, gradients, worker)
            }
        }
    }
}

/// The gradients that a backward pass reads and writes.
private struct AttentionGradients {
    let dout: Floats
    let dq: Floats
    let dk: Floats
    let dv: Floats
}

/// Consecutive queries of a span.
private struct QueryBlock {
    var firstQuery: Int
    var count: Int
    /// The span's first key.
    var firstKey: Int
    /// Query i of the block sees `visible + i` keys.
    var visible: Int

    /// The keys that some query of the block sees.
    var keyCount: Int { max(0, visible + count - 1) }
}

/// Rows of a block that have a score tile of their own.
private struct RowTile {
    var first: Int
    var count: Int
    /// Keys of the tile that the last row sees, rounded up to whole vectors.
    var keys: Int
}

/// One call, as its tasks see it. The heads of a group are stacked, row = query * group + head, so that a tile of keys
/// is read once for all of them and dk, dv sum over the group inside the matrix product.
private struct AttentionPass {
    let product: MatrixProduct
    let loops: RowLoops
    let scratch: AttentionScratch
    let q: Floats
    let k: Floats
    let v: Floats
    let o: Floats
    let logSumExp: Floats
    let scale: Float
    let queryHeads: Int
    let keyValueHeads: Int
    let size: Int
    var group: Int { queryHeads / keyValueHeads }
    var queriesPerBlock: Int { wholeQueries(in: blockRows, group) }
    /// Distance between two keys, in floats.
    var keyStride: Int { keyValueHeads * size }

    init(
        _ backend: CPUBackend, _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ o_TQD: Tensor,
        _ logSumExp_TQ: Tensor,
        scale: Float
    ) {
        (queryHeads, keyValueHeads, size) = (q_TQD.shape[1], k_UGD.shape[1], q_TQD.shape[2])
        precondition(k_UGD.shape[2] == size && v_UGD.count == k_UGD.count && queryHeads % keyValueHeads == 0)
        precondition(o_TQD.count == q_TQD.count && logSumExp_TQ.count == q_TQD.shape[0] * queryHeads)
        product = backend.product
        loops = backend.loops
        (q, k, v, o) = (q_TQD.floats, k_UGD.floats, v_UGD.floats, o_TQD.floats)
        logSumExp = logSumExp_TQ.floats
        self.scale = scale
        var layout = backend.scratch()
        scratch = AttentionScratch(
            &layout, group: queryHeads / keyValueHeads, size: size, threads: backend.workers.count)
    }

    func block(_ index: Int, of span: AttentionSpan) -> QueryBlock {
        let first = index * queriesPerBlock
        return QueryBlock(
            firstQuery: span.queryStart + first, count: min(queriesPerBlock, span.queryCount - first),
            firstKey: span.keyStart, visible: span.keyCount - span.queryCount + first + 1)
    }

    /// Online softmax (Milakov & Gimelshein 2018; Dao et al. 2022) over tiles of keys.
    func forward(_ block: QueryBlock, head: Int, _ worker: Int) {
        let rows = block.count * group
        let queries = scratch.queries[worker], outputs = scratch.outputs[worker], scores = scratch.scores[worker]
        let most = scratch.statistics[worker], sum = most + rows
        stack(q, block, head, into: queries, scale: scale)
        outputs.update(repeating: 0, count: rows * size)
        most.update(repeating: -.infinity, count: rows)
        sum.update(repeating: 0, count: rows)
        for key in stride(from: 0, to: block.keyCount, by: tileKeys) {
            let count = min(tileKeys, block.keyCount - key), offset = (block.firstKey + key) * keyStride + head * size
            let keysAcross = product.pack(
                Operand(k + offset, keyStride).transposed, size, count, into: scratch.keysAcross[worker])
            let values = product.pack(Operand(v + offset, keyStride), count, size, into: scratch.keys[worker])
            forEachRowTile(block, key, count) { tile in
                let output = outputs + tile.first * size
                product(
                    tile.count, tile.keys, size, Operand(queries + tile.first * size, size), keysAcross, into: scores,
                    scoreStride)
                for i in 0..<tile.count {
                    let row = tile.first + i, s = scores + i * scoreStride
                    let seen = hide(s, block, row, key, tile.keys)
                    if seen == 0 { continue }
                    let top = max(most[row], loops.maximum(seen, s))
                    if top > most[row] {
                        let shrink = exponential(most[row] - top)
                        sum[row] *= shrink
                        copy(size, output + i * size, into: output + i * size, scale: shrink)
                        most[row] = top
                    }
                    sum[row] += loops.exponentiate(seen, s, minus: top)
                }
                product(
                    tile.count, size, tile.keys, Operand(scores, scoreStride), values, into: output, size, adds: true)
            }
        }
        for row in 0..<rows {
            // A query that sees nothing has output 0 and log-sum-exp -infinity.
            let inverse = sum[row] == 0 ? 0 : 1 / sum[row]
            copy(size, outputs + row * size, into: o + place(row, block, head) * size, scale: inverse)
            logSumExp[place(row, block, head)] = most[row] + Float(Double(sum[row]).logarithm)
        }
    }

    /// With P = exp(scores - logSumExp): dv += P^T do; dS = P (do v^T - <do, o>); dk += dS^T q, dq = dS k.
    func backward(_ block: QueryBlock, head: Int, _ gradients: AttentionGradients, _ worker: Int) {
        let rows = block.count * group
        let queries = scratch.queries[worker], douts = scratch.outputs[worker], dqueries = scratch.gradients[worker]
        let scores = scratch.scores[worker], dscores = scratch.dscores[worker]
        let statistic = scratch.statistics[worker], delta = statistic + rows
        stack(q, block, head, into: queries, scale: scale)
        stack(gradients.dout, block, head, into: douts, scale: 1)
        for row in 0..<rows {
            let place = place(row, block, head)
            statistic[row] = logSumExp[place]
            delta[row] = dot(size, gradients.dout + place * size, o + place * size)
        }
        dqueries.update(repeating: 0, count: rows * size)
        for key in stride(from: 0, to: block.keyCount, by: tileKeys) {
            let count = min(tileKeys, block.keyCount - key), offset = (block.firstKey + key) * keyStride + head * size
            let key_ND = Operand(k + offset, keyStride), value_ND = Operand(v + offset, keyStride)
            let keysAcross = product.pack(key_ND.transposed, size, count, into: scratch.keysAcross[worker])
            let valuesAcross = product.pack(value_ND.transposed, size, count, into: scratch.valuesAcross[worker])
            let keys = product.pack(key_ND, count, size, into: scratch.keys[worker])
            forEachRowTile(block, key, count) { tile in
                let first = tile.first * size
                let query = Operand(queries + first, size), dout = Operand(douts + first, size)
                product(tile.count, tile.keys, size, query, keysAcross, into: scores, scoreStride)
                product(tile.count, tile.keys, size, dout, valuesAcross, into: dscores, scoreStride)
                for i in 0..<tile.count {
                    let row = tile.first + i, s = scores + i * scoreStride, ds = dscores + i * scoreStride
                    let seen = hide(s, block, row, key, tile.keys)
                    loops.scoreGradients(seen, s, ds, logSumExp: statistic[row], delta: delta[row])
                    (ds + seen).update(repeating: 0, count: tile.keys - seen)
                }
                let p = Operand(scores, scoreStride), ds = Operand(dscores, scoreStride)
                product(
                    tile.keys, size, tile.count, p.transposed, dout, into: gradients.dv + offset, keyStride,
                    adds: true)
                product(
                    tile.keys, size, tile.count, ds.transposed, query, into: gradients.dk + offset, keyStride,
                    adds: true)
                product(tile.count, size, tile.keys, ds, keys, into: dqueries + first, size, adds: true)
            }
        }
        for row in 0..<rows {
            copy(size, dqueries + row * size, into: gradients.dq + place(row, block, head) * size, scale: scale)
        }
    }

    /// Where row `row` of the stacked block stands in a [T, Q] tensor.
    private func place(_ row: Int, _ block: QueryBlock, _ head: Int) -> Int {
        (block.firstQuery + row / group) * queryHeads + head * group + row % group
    }

    private func stack(_ x: Floats, _ block: QueryBlock, _ head: Int, into rows: Floats, scale: Float) {
        for i in 0..<block.count {
            copy(group * size, x + place(i * group, block, head) * size, into: rows + i * group * size, scale: scale)
        }
    }

    /// Calls `body` for the rows of a block that see any of `count` keys from `key` on.
    @inline(__always) private func forEachRowTile(
        _ block: QueryBlock, _ key: Int, _ count: Int, _ body: (RowTile) -> Void
    ) {
        let queriesPerTile = wholeQueries(in: tileRows, group)
        for query in stride(from: 0, to: block.count, by: queriesPerTile) {
            let queries = min(queriesPerTile, block.count - query)
            let seen = block.visible + query + queries - 1 - key
            if seen > 0 {
                let keys = min(count, roundUp(seen, to: 32))
                body(RowTile(first: query * group, count: queries * group, keys: keys))
            }
        }
    }

    /// Hides what a row's query does not see of `count` scores from `key` on: those up to the next whole vector become
    /// -infinity, whose power is 0, so that rows are walked in whole vectors; what lies behind is 0 at once. Returns
    /// how many are to be walked.
    @inline(__always) private func hide(
        _ scores: Floats, _ block: QueryBlock, _ row: Int, _ key: Int, _ count: Int
    ) -> Int {
        let seen = max(0, min(count, block.visible + row / group - key)), whole = min(roundUp(seen, to: 16), count)
        (scores + seen).update(repeating: -.infinity, count: whole - seen)
        (scores + whole).update(repeating: 0, count: count - whole)
        return whole
    }
}

/// scores = P = exp(scores - logSumExp), dscores = P (dscores - delta), in place.
func scoreGradients(_ count: Int, _ scores: Floats, _ dscores: Floats, logSumExp: Float, delta: Float) {
    forEachGroup(count) { i, n in
        let p = exponential(load(scores + i, upTo: n) - logSumExp)
        store(p, to: scores + i, upTo: n)
        store(p * (load(dscores + i, upTo: n) - delta), to: dscores + i, upTo: n)
    }
}
