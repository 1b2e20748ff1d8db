package import MartletCore

/// Rows of a score tile, counting each query once for each head of its group, and its keys.
private let tileRows = 128
private let tileKeys = 256

/// For every thread: three [M, D] blocks (queries, outputs or their gradients), two [M, 256] tiles of scores and two
/// statistics a row, where M = max(128, Q / G) rounded down to whole queries.
struct AttentionScratch {
    let queries: PerWorker
    let outputs: PerWorker
    let gradients: PerWorker
    let scores: PerWorker
    let dscores: PerWorker
    let statistics: PerWorker

    init(_ scratch: inout Scratch, shapes: ScratchShapes, threads: Int) {
        guard shapes.queryHeads > 0 && shapes.keyValueHeads > 0 else {
            self.init(&scratch, rows: 0, size: 0, threads: 0)
            return
        }
        let group = shapes.queryHeads / shapes.keyValueHeads
        self.init(&scratch, rows: queriesPerBlock(group) * group, size: shapes.headSize, threads: threads)
    }

    init(_ scratch: inout Scratch, rows: Int, size: Int, threads: Int) {
        queries = scratch.perWorker(threads, rows * size)
        outputs = scratch.perWorker(threads, rows * size)
        gradients = scratch.perWorker(threads, rows * size)
        scores = scratch.perWorker(threads, rows * tileKeys)
        dscores = scratch.perWorker(threads, rows * tileKeys)
        statistics = scratch.perWorker(threads, 2 * rows)
    }
}

private func queriesPerBlock(_ group: Int) -> Int { max(1, tileRows / group) }

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

/// Consecutive queries of a span, and the keys that the first of them sees.
private struct QueryBlock {
    var firstQuery: Int
    var count: Int
    var firstKey: Int
    /// Query i of the block sees `visible + i` keys.
    var visible: Int
}

/// One call, as its tasks see it. The heads of a group are stacked, row = query * group + head, so that a tile of keys
/// is read once for all of them and dk, dv sum over the group inside the matrix product.
private struct AttentionPass {
    let product: MatrixProduct
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
    var queriesPerBlock: Int { MartletCPU.queriesPerBlock(group) }
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
        (q, k, v, o) = (q_TQD.floats, k_UGD.floats, v_UGD.floats, o_TQD.floats)
        logSumExp = logSumExp_TQ.floats
        self.scale = scale
        var layout = backend.scratch()
        let group = queryHeads / keyValueHeads
        scratch = AttentionScratch(
            &layout, rows: MartletCPU.queriesPerBlock(group) * group, size: size, threads: backend.workers.count)
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
        forEachKeyTile(block) { key, count in
            let offset = (block.firstKey + key) * keyStride + head * size
            product(
                rows, count, size, Operand(queries, size), Operand(k + offset, keyStride).transposed, into: scores,
                tileKeys)
            for row in 0..<rows {
                let seen = max(0, min(count, block.visible + row / group - key)), s = scores + row * tileKeys
                hide(s, from: seen, to: count)
                if seen == 0 { continue }
                let top = max(most[row], maximum(roundUp(seen, to: 8), s))
                if top > most[row] {
                    let shrink = exponential(most[row] - top)
                    sum[row] *= shrink
                    copy(size, outputs + row * size, into: outputs + row * size, scale: shrink)
                    most[row] = top
                }
                sum[row] += exponentiate(roundUp(seen, to: 8), s, minus: top)
            }
            product(
                rows, size, count, Operand(scores, tileKeys), Operand(v + offset, keyStride), into: outputs, size,
                adds: true)
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
        forEachKeyTile(block) { key, count in
            let offset = (block.firstKey + key) * keyStride + head * size
            let keys = Operand(k + offset, keyStride), values = Operand(v + offset, keyStride)
            product(rows, count, size, Operand(queries, size), keys.transposed, into: scores, tileKeys)
            product(rows, count, size, Operand(douts, size), values.transposed, into: dscores, tileKeys)
            for row in 0..<rows {
                let seen = max(0, min(count, block.visible + row / group - key))
                let s = scores + row * tileKeys, ds = dscores + row * tileKeys
                hide(s, from: seen, to: count)
                scoreGradients(roundUp(seen, to: 8), s, ds, logSumExp: statistic[row], delta: delta[row])
                (ds + seen).update(repeating: 0, count: count - seen)
            }
            let p = Operand(scores, tileKeys), ds = Operand(dscores, tileKeys)
            product(
                count, size, rows, p.transposed, Operand(douts, size), into: gradients.dv + offset, keyStride,
                adds: true)
            product(
                count, size, rows, ds.transposed, Operand(queries, size), into: gradients.dk + offset, keyStride,
                adds: true)
            product(rows, size, count, ds, keys, into: dqueries, size, adds: true)
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

    /// Calls `body(firstKey, count)` for the tiles of keys that the block's last query sees.
    private func forEachKeyTile(_ block: QueryBlock, _ body: (Int, Int) -> Void) {
        let seen = block.visible + block.count - 1
        for key in stride(from: 0, to: seen, by: tileKeys) { body(key, min(tileKeys, seen - key)) }
    }
}

/// Scores that a query does not see: those up to the next whole group of eight become -infinity, whose power is 0, so
/// that rows are walked in whole groups; what lies behind is 0 at once.
@inline(__always) private func hide(_ scores: Floats, from seen: Int, to count: Int) {
    let whole = roundUp(seen, to: 8)
    (scores + seen).update(repeating: -.infinity, count: whole - seen)
    if whole < count { (scores + whole).update(repeating: 0, count: count - whole) }
}

/// scores = P = exp(scores - logSumExp), dscores = P (dscores - delta), in place; `count` is a multiple of eight.
private func scoreGradients(_ count: Int, _ scores: Floats, _ dscores: Floats, logSumExp: Float, delta: Float) {
    var i = 0
    while i < count {
        let p = exponential(load(scores + i) - logSumExp)
        store(p, to: scores + i)
        store(p * (load(dscores + i) - delta), to: dscores + i)
        i &+= 8
    }
}
