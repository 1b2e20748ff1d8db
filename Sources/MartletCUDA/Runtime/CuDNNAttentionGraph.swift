internal import MartletCore

/// Causal attention of B sequences as cuDNN sees it: [B, heads, rows, D], where a tensor of packed rows keeps its
/// strides and each sequence has an offset and a length.
struct CuDNNAttentionGraph: Hashable {
    /// Ids of the tensors that a run binds.
    enum Slot: Int {
        case q = 1, k, v, o, logSumExp
        case dout, dq, dk, dv, rowSums
        case queryOffsets, keyOffsets, logSumExpOffsets, queryCounts, keyCounts
    }

    let isBackward: Bool
    /// Heads in a row of memory.
    let rowQueryHeads: Int
    let rowKeyValueHeads: Int
    let size: Int
    let scale: Float
    /// The heads of one run, of these.
    private(set) var queryHeads: Int
    /// Sequences lie at offsets, each with its own length up to `queries` and `keys`. Otherwise there is one.
    private(set) var isPacked = false
    /// The last query sees the last key; otherwise the first sees the first. The same where lengths are equal, but the
    /// backward engine skips masked tiles only with the latter (twice the speed).
    private(set) var isAlignedAtEnd = false
    private(set) var sequences = 1
    private(set) var queries = 0
    private(set) var keys = 0

    init(queryHeads: Int, keyValueHeads: Int, size: Int, scale: Float, isBackward: Bool) {
        self.isBackward = isBackward
        (rowQueryHeads, rowKeyValueHeads, self.queryHeads) = (queryHeads, keyValueHeads, queryHeads)
        (self.size, self.scale) = (size, scale)
    }

    // MARK: Sequences

    /// For one span, as it is.
    func exactly(_ span: AttentionSpan) -> CuDNNAttentionGraph {
        var copy = self
        (copy.sequences, copy.queries, copy.keys) = (1, span.queryCount, span.keyCount)
        copy.isAlignedAtEnd = span.queryCount != span.keyCount
        return copy
    }

    /// For packed spans, with numbers rounded up so that other spans find the same plan.
    func packed(_ spans: ArraySlice<AttentionSpan>) -> CuDNNAttentionGraph {
        var copy = self
        copy.isPacked = true
        copy.isAlignedAtEnd = spans.contains { $0.queryCount != $0.keyCount }
        copy.sequences = powerOfTwo(notBelow: spans.count)
        copy.queries = rounded(spans.map(\.queryCount).max() ?? 0)
        copy.keys = rounded(spans.map(\.keyCount).max() ?? 0)
        return copy
    }

    /// To a power of two, or backward, where memory is for the longest, to a quarter of one.
    private func rounded(_ rows: Int) -> Int {
        let power = powerOfTwo(notBelow: rows)
        return isBackward ? roundUp(rows, to: max(128, power / 8)) : max(128, power)
    }

    // MARK: Heads

    var group: Int { rowQueryHeads / rowKeyValueHeads }
    var keyValueHeads: Int { max(1, queryHeads / group) }
    /// Runs that share a key/value head, each of which leaves a gradient of its own.
    var partsOfGroup: Int { max(1, group / queryHeads) }

    /// Takes as many heads a run as `roomByteCount` allows: whole groups, or equal parts of one. False if none.
    mutating func takeHeads(fitting limit: Int) -> Bool {
        for heads in (1...rowQueryHeads).reversed() where rowQueryHeads % heads == 0 {
            guard heads % group == 0 || group % heads == 0 else { continue }
            queryHeads = heads
            if roomByteCount <= limit { return true }
        }
        return false
    }

    // MARK: Memory of a backward run

    /// One float a query and head.
    var rowSumByteCount: Int { roundUp(4 * sequences * queryHeads * queries, to: 256) }

    /// dS in bfloat16, and, where heads share keys, dK and dV of each.
    var workspaceByteCount: Int {
        let heads = sequences * queryHeads
        let dscores = 2 * heads * roundUp(queries, to: 128) * roundUp(keys, to: 128)
        return dscores + (queryHeads == keyValueHeads ? 0 : 4 * heads * keys * size) + 1024 * (sequences + 1)
    }

    var roomByteCount: Int { rowSumByteCount + workspaceByteCount }
}

private func powerOfTwo(notBelow n: Int) -> Int {
    var power = 1
    while power < n { power *= 2 }
    return power
}
