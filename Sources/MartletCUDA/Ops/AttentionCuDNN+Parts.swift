internal import MartletCore

/// Spans that one plan computes together.
struct CuDNNPart: Equatable {
    var spans: [AttentionSpan]
    var mask: CuDNNAttentionGraph.Mask
}

/// What backward calls may take at most, and how spans are split so that they take no more.
struct CuDNNLimits: Equatable {
    /// Key rows of a call, from its first to its last.
    var keyRows = 0
    /// Runs that share a key/value head.
    var runsOfGroup = 1
    var roomByteCount = 0
    /// Rows of queries that may have earlier keys.
    var queryRows = 0

    /// A single span whose lengths are multiples of this has a plan of its own, without lengths (some 8 % faster). Not
    /// every one: a plan takes 30 ms to build. And not the shortest: the engine for a few queries writes no statistics.
    private static let exactMultiple = 256
    /// A call takes at least this many keys, if there are so many: dQ is added to once a call.
    private static let fewestKeys = 16384

    init() {}

    /// For a tile of one sequence, or of several of equal length, as far as `limit` bytes of room allow; nil: not at all.
    init?(_ shapes: ScratchShapes, isOrdered: Bool, limit: Int) {
        guard shapes.trains, shapes.queryHeads > 0, shapes.keyValueHeads > 0 else { return nil }
        let all = max(shapes.keyRows, shapes.tokens)
        let sequence = shapes.sequence > 0 ? min(shapes.sequence, all) : all
        let keys = min(sequence, max(shapes.tokens, CuDNNLimits.fewestKeys))
        let longest = AttentionSpan(queryStart: 0, queryCount: shapes.tokens, keyStart: 0, keyCount: keys)
        var graph = CuDNNAttentionGraph(shapes, isBackward: true, isOrdered: isOrdered).packed([longest], .none)
        // Atomic sums take so little that all heads have room, and sequences whose number is rounded up.
        guard !isOrdered || graph.takeHeads(fitting: limit) else { return nil }
        (keyRows, runsOfGroup) = (max(keys, shapes.tokens), graph.runsOfGroup)
        roomByteCount = isOrdered ? graph.roomByteCount : 2 * graph.roomByteCount
        queryRows = all > shapes.tokens ? shapes.tokens : 0
    }

    // MARK: Splitting

    /// Parts that run one after the other, and in each those whose gradients do not meet. nil where a query sees no key.
    func steps(_ spans: [AttentionSpan], _ empty: CuDNNAttentionGraph) -> [[CuDNNPart]]? {
        let spans = spans.filter { $0.queryCount > 0 }
        guard spans.allSatisfy({ $0.keyCount >= $0.queryCount }) else { return nil }
        return empty.isBackward ? backwardSteps(spans, empty) : [forwardParts(spans)]
    }

    /// Those whose queries are all their keys apart from the others.
    private func forwardParts(_ spans: [AttentionSpan]) -> [CuDNNPart] {
        let whole = spans.filter { $0.queryCount == $0.keyCount }, late = spans.filter { $0.queryCount < $0.keyCount }
        let parts = [CuDNNPart(spans: whole, mask: .fromStart), CuDNNPart(spans: late, mask: .fromEnd)]
        return parts.filter { !$0.spans.isEmpty }
    }

    /// First all queries with the keys of their own rows, as many spans of similar length together as fit into the room:
    /// triangles. Then those of sequences that began in an earlier tile with the keys before: rectangles. Where
    /// `logSumExp` is that of all keys, gradients are sums over such parts.
    private func backwardSteps(_ spans: [AttentionSpan], _ empty: CuDNNAttentionGraph) -> [[CuDNNPart]] {
        var triangles: [CuDNNPart] = []
        var rest = spans.map(\.ownKeys).sorted { ($0.keyCount, $1.keyStart) > ($1.keyCount, $0.keyStart) }
        while !rest.isEmpty {
            let count = fitting(rest, empty)
            triangles.append(
                CuDNNPart(spans: rest.prefix(count).sorted { $0.queryStart < $1.queryStart }, mask: .fromStart))
            rest.removeFirst(count)
        }
        let rectangles = spans.flatMap { $0.earlierKeys(atMost: keyRows) }
        return [triangles] + rectangles.map { [CuDNNPart(spans: [$0], mask: .none)] }
    }

    /// How many of the first spans fit into the room together; at least one.
    private func fitting(_ spans: [AttentionSpan], _ empty: CuDNNAttentionGraph) -> Int {
        var count = 1
        while count < spans.count,
            empty.packed(spans.prefix(count + 1), .fromStart).roomByteCount <= roomByteCount
        {
            count += 1
        }
        return count
    }

    /// nil where there is no room for one.
    func graph(_ part: CuDNNPart, _ empty: CuDNNAttentionGraph) -> CuDNNAttentionGraph? {
        let isExact = part.spans.count == 1 && part.spans[0].isExact(CuDNNLimits.exactMultiple)
        var graph = isExact ? empty.exactly(part.spans[0], part.mask) : empty.packed(part.spans, part.mask)
        guard !graph.isBackward || graph.takeHeads(fitting: roomByteCount) else { return nil }
        return SpanTables.fits(graph.sequences) ? graph : nil
    }
}

extension AttentionSpan {
    fileprivate func isExact(_ multiple: Int) -> Bool { queryCount % multiple == 0 && keyCount % multiple == 0 }

    /// The queries, with the keys of the same rows.
    fileprivate var ownKeys: AttentionSpan {
        AttentionSpan(
            queryStart: queryStart, queryCount: queryCount, keyStart: keyStart + keyCount - queryCount,
            keyCount: queryCount)
    }

    /// The queries, with the keys before their own rows, `limit` at a time.
    fileprivate func earlierKeys(atMost limit: Int) -> [AttentionSpan] {
        stride(from: 0, to: keyCount - queryCount, by: max(limit, 1)).map { first in
            AttentionSpan(
                queryStart: queryStart, queryCount: queryCount, keyStart: keyStart + first,
                keyCount: min(limit, keyCount - queryCount - first))
        }
    }
}
