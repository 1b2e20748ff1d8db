internal import MartletCore

/// Attention of B sequences as cuDNN sees it: [B, heads, rows, D], where a tensor of packed rows keeps its
/// strides and each sequence has an offset and a length.
struct CuDNNAttentionGraph: Hashable {
    /// Ids of the tensors that a run binds.
    enum Slot: Int {
        case q = 1, k, v, o, logSumExp
        case dout, dq, dk, dv, rowSums, querySums
        case queryOffsets, keyOffsets, logSumExpOffsets, queryCounts, keyCounts
    }

    /// Which keys a query sees.
    enum Mask {
        /// The first query the first key, each later one a key more.
        case fromStart
        /// The last query the last key, each earlier one a key less. The same where lengths are equal, but the backward
        /// engine skips no masked tiles then: twice the time.
        case fromEnd
        case none
    }

    let isBackward: Bool
    /// Whether a backward pass gives the same bytes each time: dQ by a product with dS in memory, not by atomic sums.
    let isOrdered: Bool
    /// Heads in a row of memory.
    let rowQueryHeads: Int
    let rowKeyValueHeads: Int
    let size: Int
    let scale: Float
    /// The heads of one run, of these.
    private(set) var queryHeads: Int
    /// Sequences lie at offsets, each with its own length up to `queries` and `keys`. Otherwise there is one.
    private(set) var isPacked = false
    private(set) var mask = Mask.fromStart
    private(set) var sequences = 1
    private(set) var queries = 0
    private(set) var keys = 0

    init(queryHeads: Int, keyValueHeads: Int, size: Int, scale: Float, isBackward: Bool, isOrdered: Bool) {
        (self.isBackward, self.isOrdered) = (isBackward, isOrdered)
        (rowQueryHeads, rowKeyValueHeads, self.queryHeads) = (queryHeads, keyValueHeads, queryHeads)
        (self.size, self.scale) = (size, scale)
    }

    /// For a run of these shapes, with the scale that every model has.
    init(_ shapes: ScratchShapes, isBackward: Bool, isOrdered: Bool) {
        self.init(
            queryHeads: shapes.queryHeads, keyValueHeads: shapes.keyValueHeads, size: shapes.headSize,
            scale: 1 / Float(shapes.headSize).squareRoot(), isBackward: isBackward, isOrdered: isOrdered)
    }

    // MARK: Sequences

    /// For one span, as it is.
    func exactly(_ span: AttentionSpan, _ mask: Mask) -> CuDNNAttentionGraph {
        var copy = self
        (copy.sequences, copy.queries, copy.keys, copy.mask) = (1, span.queryCount, span.keyCount, mask)
        return copy
    }

    /// For packed spans, with numbers rounded up so that other spans find the same plan.
    func packed(_ spans: some Collection<AttentionSpan>, _ mask: Mask) -> CuDNNAttentionGraph {
        var copy = self
        (copy.isPacked, copy.mask) = (true, mask)
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
    var runsOfGroup: Int { max(1, group / queryHeads) }

    /// Takes as many heads a run as `limit` bytes of room allow: whole groups, or equal parts of one. False if none.
    mutating func takeHeads(fitting limit: Int) -> Bool {
        let choices = (1...rowQueryHeads).filter { rowQueryHeads % $0 == 0 && ($0 % group == 0 || group % $0 == 0) }
        // Atomic sums of fewer heads stay in the L2 cache (8 % faster); this many keys still fill the GPU.
        let enough = choices.first { $0 % group == 0 && $0 * sequences * keys >= 1 << 18 } ?? rowQueryHeads
        for heads in choices.reversed() where isOrdered || heads <= enough {
            queryHeads = heads
            if roomByteCount <= limit { return true }
        }
        return false
    }

    // MARK: Memory of a backward run

    /// One float a query and head.
    var rowSumByteCount: Int { roundUp(4 * sequences * queryHeads * queries, to: 256) }

    /// dQ in float32 where it is summed atomically.
    var querySumByteCount: Int { isOrdered ? 0 : roundUp(4 * sequences * queryHeads * queries * size, to: 256) }

    /// dS in bfloat16 where the order is fixed, and, where heads share keys, dK and dV of each.
    var workspaceByteCount: Int {
        let heads = sequences * queryHeads
        let dscores = isOrdered ? 2 * heads * roundUp(queries, to: 128) * roundUp(keys, to: 128) : 0
        return dscores + (queryHeads == keyValueHeads ? 0 : 4 * heads * keys * size) + 1024 * (sequences + 1)
    }

    var roomByteCount: Int { rowSumByteCount + querySumByteCount + workspaceByteCount }
}

private func powerOfTwo(notBelow n: Int) -> Int {
    var power = 1
    while power < n { power *= 2 }
    return power
}
