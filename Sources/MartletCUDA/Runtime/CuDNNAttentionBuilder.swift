internal import MartletCore

extension CuDNNAttentionGraph {
    func plan(_ cudnn: CuDNN) throws(MartletError) -> CuDNNPlan {
        let graph = CuDNNGraph(cudnn), builder = try CuDNNAttentionBuilder(self, graph)
        if isBackward { try builder.backward() } else { try builder.forward() }
        return try CuDNNPlan(cudnn, graph)
    }
}

/// Puts the operations together in the order in which cuDNN's engines know attention.
private struct CuDNNAttentionBuilder {
    typealias Node = CuDNNGraph.Node
    private let shape: CuDNNAttentionGraph
    private let graph: CuDNNGraph
    private var queryCounts: Node?
    private var keyCounts: Node?
    private var queryOffsets: Node?
    private var keyOffsets: Node?
    private var logSumExpOffsets: Node?

    init(_ shape: CuDNNAttentionGraph, _ graph: CuDNNGraph) throws(MartletError) {
        self.shape = shape
        self.graph = graph
        guard shape.isPacked else { return }
        let counts = [shape.sequences, 1, 1, 1], offsets = [shape.sequences + 1, 1, 1, 1]
        queryCounts = try bound(.queryCounts, counts, nil, .int32)
        keyCounts = try bound(.keyCounts, counts, nil, .int32)
        queryOffsets = try bound(.queryOffsets, offsets, nil, .int64)
        keyOffsets = try bound(.keyOffsets, offsets, nil, .int64)
        logSumExpOffsets = try bound(.logSumExpOffsets, offsets, nil, .int64)
    }

    // MARK: Tensors

    private func bound(
        _ slot: CuDNNAttentionGraph.Slot, _ sizes: [Int], _ strides: [Int]?, _ type: CuDNNDescriptor.DataType,
        _ offsets: Node? = nil, alignment: Int = 16
    ) throws(MartletError) -> Node {
        try graph.bound(slot.rawValue, sizes, strides, type, offsets: offsets, alignment: alignment)
    }

    /// [B, Q, T, D] over rows of [T, Q, D].
    private func queries(_ slot: CuDNNAttentionGraph.Slot) throws(MartletError) -> Node {
        let row = shape.rowQueryHeads * shape.size
        return try bound(
            slot, [shape.sequences, shape.queryHeads, shape.queries, shape.size],
            [shape.queries * row, shape.size, row, 1], .bfloat16, queryOffsets)
    }

    /// [B, G, U, D] over rows of [U, G, D], or [B, G, D, U].
    private func keys(_ slot: CuDNNAttentionGraph.Slot, transposed: Bool = false) throws(MartletError) -> Node {
        let row = shape.rowKeyValueHeads * shape.size
        var sizes = [shape.sequences, shape.keyValueHeads, shape.keys, shape.size]
        var strides = [shape.keys * row, shape.size, row, 1]
        if transposed {
            sizes.swapAt(2, 3)
            strides.swapAt(2, 3)
        }
        return try bound(slot, sizes, strides, .bfloat16, keyOffsets)
    }

    /// [B, Q, T, 1] over rows of [T, Q].
    private func logSumExp() throws(MartletError) -> Node {
        try bound(
            .logSumExp, perQuery, [shape.queries * shape.rowQueryHeads, 1, shape.rowQueryHeads, 1], .float32,
            logSumExpOffsets, alignment: 4)
    }

    private var perQuery: [Int] { [shape.sequences, shape.queryHeads, shape.queries, 1] }
    private var perPair: [Int] { [shape.sequences, shape.queryHeads, shape.queries, shape.keys] }

    // MARK: Parts

    /// s = scale q k^T
    private func scores(_ q: Node, _ k: Node) throws(MartletError) -> Node {
        let s = try graph.product(q, k, into: graph.inner(perPair), rows: queryCounts, columns: keyCounts)
        return try graph.pointwise(.multiply, s, graph.constant(shape.scale))
    }

    /// s where both rows exist and the query sees the key, -infinity elsewhere.
    private func masked(_ s: Node) throws(MartletError) -> Node {
        var s = s
        if let queryCounts, let keyCounts {
            let row = try graph.pointwise(.index, s, as: .int32, computing: .int32, axis: 2)
            let column = try graph.pointwise(.index, s, as: .int32, computing: .int32, axis: 3)
            let isRow = try graph.pointwise(.lessThan, row, queryCounts, as: .boolean, computing: .boolean)
            let isColumn = try graph.pointwise(.lessThan, column, keyCounts, as: .boolean, computing: .boolean)
            let exists = try graph.pointwise(.and, isRow, isColumn, as: .boolean, computing: .boolean)
            s = try graph.pointwise(.select, s, graph.constant(-Float.infinity), where: exists)
        }
        guard shape.mask != .none else { return s }
        var row = try graph.pointwise(.index, s, as: .int32, axis: 2)
        let column = try graph.pointwise(.index, s, as: .int32, axis: 3)
        if shape.mask == .fromEnd {
            let u = try count(keyCounts, shape.keys), t = try count(queryCounts, shape.queries)
            row = try graph.pointwise(.add, row, u, as: .int32, computing: .int32)
            row = try graph.pointwise(.subtract, row, t, as: .int32, computing: .int32)
        }
        let isSeen = try graph.pointwise(.atLeast, row, column, as: .boolean, computing: .boolean)
        return try graph.pointwise(.select, s, graph.constant(-Float.infinity), where: isSeen)
    }

    private func count(_ perSequence: Node?, _ ofAll: Int) throws(MartletError) -> Node {
        if let perSequence { return perSequence }
        return try graph.constant(ofAll)
    }

    // MARK: Passes

    /// o = softmax(s) v, and the log of the softmax's denominators.
    func forward() throws(MartletError) {
        let q = try queries(.q), k = try keys(.k, transposed: true), v = try keys(.v)
        let o = try queries(.o), logSumExp = try logSumExp()
        let s = try masked(scores(q, k))
        let most = try graph.reduce(.maximum, s, into: graph.inner(perQuery))
        let e = try graph.pointwise(.exponential, graph.pointwise(.subtract, s, most))
        let sum = try graph.reduce(.sum, e, into: graph.inner(perQuery))
        try graph.pointwise(.add, most, graph.pointwise(.logarithm, sum), into: logSumExp)
        let p = try graph.pointwise(.divide, e, sum, as: .bfloat16)
        try graph.product(p, v, into: o, rows: queryCounts, inner: keyCounts)
    }

    /// p = exp(s - logSumExp), dv = p^T do, ds = scale p (do v^T - sum(do o)), dk = ds^T q, dq = ds k.
    func backward() throws(MartletError) {
        let q = try queries(.q), k = try keys(.k, transposed: true), v = try keys(.v, transposed: true)
        let o = try queries(.o), dout = try queries(.dout), logSumExp = try logSumExp()
        let dq = try queries(.dq), dk = try keys(.dk), dv = try keys(.dv)

        let product = try graph.pointwise(.multiply, dout, o, into: graph.inner(dout.sizes))
        let sum = try graph.reduce(.sum, product, into: graph.inner(perQuery))
        // cuDNN knows this factor as dropout's; it wants the sums in memory.
        let rowSums = try bound(.rowSums, perQuery, nil, .float32)
        try graph.pointwise(.multiply, sum, graph.constant(Float(1)), into: rowSums)

        let s = try graph.pointwise(.subtract, scores(q, k), logSumExp)
        let p = try graph.pointwise(.exponential, masked(s))
        try sumOverQueries(p, dout, into: dv)

        let dp = try graph.product(dout, v, into: graph.inner(perPair), rows: queryCounts, columns: keyCounts)
        let centred = try graph.pointwise(.multiply, graph.pointwise(.subtract, dp, rowSums), p)
        let ds = try graph.pointwise(.multiply, centred, graph.constant(shape.scale))
        try sumOverQueries(ds, q, into: dk)

        let rowsOfK = try graph.view(
            k, as: graph.inner(dk.sizes, dk.strides, .bfloat16, offsets: keyOffsets))
        guard !shape.isOrdered else {
            try graph.product(ds, rowsOfK, into: dq, rows: queryCounts, inner: keyCounts)
            return
        }
        let sums = try bound(.querySums, dq.sizes, nil, .float32)
        try graph.product(ds, rowsOfK, into: sums, rows: queryCounts, inner: keyCounts)
        try graph.pointwise(.identity, sums, into: dq)
    }

    /// y = x^T rows, summed over the query heads that share a key/value head.
    private func sumOverQueries(_ x: Node, _ rows: Node, into y: Node) throws(MartletError) {
        let (b, h, t, u) = (shape.sequences, shape.queryHeads, shape.queries, shape.keys)
        let transposed = try graph.view(
            x, as: graph.inner([b, h, u, t], [h * t * u, t * u, 1, u], .bfloat16))
        guard h != shape.keyValueHeads else {
            try graph.product(transposed, rows, into: y, rows: keyCounts, inner: queryCounts)
            return
        }
        let perHead = try graph.product(
            transposed, rows, into: graph.inner([b, h, u, shape.size], nil, .bfloat16), rows: keyCounts,
            inner: queryCounts)
        try graph.reduce(.sum, perHead, into: y)
    }
}
