internal import MartletCore

/// What an op was called with.
struct CuDNNOperands {
    var q: Tensor
    var k: Tensor
    var v: Tensor
    var o: Tensor
    var logSumExp: Tensor
    /// The first row of keys that any span has; rows of `dk`, `dv` count from it.
    var firstKey = 0
    var gradients: Gradients?

    struct Gradients {
        let dout: Tensor
        let dq: Tensor
        let scratch: CuDNNAttentionScratch

        init(_ dout: Tensor, dq: Tensor, _ scratch: CuDNNAttentionScratch) {
            self.dout = dout
            self.dq = dq
            self.scratch = scratch
        }
    }
}

/// Spans that run together: one plan, for one part of the heads after the other.
struct CuDNNCall {
    let spans: [AttentionSpan]
    let graph: CuDNNAttentionGraph
    let plan: CuDNNPlan
}

/// The calls of an op.
struct CuDNNCalls {
    var list: [CuDNNCall]
    var firstKey: Int
    var keyRows: Int

    init(_ list: [CuDNNCall]) {
        self.list = list
        let spans = list.flatMap(\.spans)
        firstKey = spans.map(\.keyStart).min() ?? 0
        keyRows = (spans.map { $0.keyStart + $0.keyCount }.max() ?? 0) - firstKey
    }

    /// Parts of a group of query heads, each of which leaves gradients of its own.
    var parts: Int { list.map(\.graph.partsOfGroup).max() ?? 1 }

    /// The key rows that have a gradient in `part`, neighbours joined.
    func keyRanges(_ part: Int) -> [Range<Int>] {
        let spans = list.filter { $0.graph.partsOfGroup > part }.flatMap(\.spans)
        var ranges: [Range<Int>] = []
        for span in spans.sorted(by: { $0.keyStart < $1.keyStart }) {
            let end = span.keyStart + span.keyCount
            if let last = ranges.last, last.upperBound == span.keyStart {
                ranges[ranges.count - 1] = last.lowerBound..<end
            } else {
                ranges.append(span.keyStart..<end)
            }
        }
        return ranges
    }
}

/// Attention by cuDNN: its plans, and the tables of packed sequences.
final class CuDNNAttention {
    let cudnn: CuDNN
    /// Why cuDNN was first not used; for `martlet doctor`.
    private(set) var refusal: MartletError?
    /// The most room that a backward call may take where memory is not to spare.
    let roomLimit: Int
    private let device: Device
    private let tables: SpanTables
    /// nil where cuDNN has none.
    private var plans: [CuDNNAttentionGraph: CuDNNPlan?] = [:]
    /// The same spans come back in every layer.
    private var known: [Request: CuDNNCalls?] = [:]
    private var reserved = Reservation()

    /// A span whose lengths are multiples of this has a plan of its own, without lengths (some 8 % faster). Not every
    /// span: a plan takes 30 ms to build. And not the shortest: the engine for a few queries writes no statistics.
    private static let exactMultiple = 256

    /// nil where cuDNN's attention was never run: before Hopper and after it.
    init?(_ device: Device, _ staging: Staging) {
        guard device.capability == 90, let cudnn = try? CuDNN(device) else { return nil }
        self.cudnn = cudnn
        self.device = device
        roomLimit = device.totalByteCount / 32
        tables = SpanTables(staging)
    }

    // MARK: Memory

    /// The most that backward calls may take.
    private struct Reservation {
        var keyRows = 0
        var parts = 1
        var roomByteCount = 0
    }

    /// Lays out what a backward pass takes, for the largest shapes.
    func layOut(_ scratch: inout Scratch, _ shapes: ScratchShapes) {
        let needs = reservation(shapes)
        guard needs.roomByteCount > 0 else { return }
        _ = CuDNNAttentionScratch(
            &scratch, parts: needs.parts, keyRows: needs.keyRows, heads: shapes.keyValueHeads, size: shapes.headSize,
            roomByteCount: needs.roomByteCount)
    }

    func reserve(for shapes: ScratchShapes, in arena: Arena) {
        tables.reserve(in: arena)
        guard !arena.isMeasuring else { return }
        reserved = reservation(shapes)
        known = [:]
    }

    /// Room for a tile of one sequence, or of several of equal length, as far as the limit allows.
    private func reservation(_ shapes: ScratchShapes) -> Reservation {
        guard shapes.trains, shapes.queryHeads > 0, shapes.keyValueHeads > 0 else { return Reservation() }
        let keyRows = max(shapes.keyRows, shapes.tokens)
        let longest = AttentionSpan(
            queryStart: 0, queryCount: shapes.tokens, keyStart: 0,
            keyCount: shapes.sequence > 0 ? min(shapes.sequence, keyRows) : keyRows)
        var graph = CuDNNAttentionGraph(
            queryHeads: shapes.queryHeads, keyValueHeads: shapes.keyValueHeads, size: shapes.headSize, scale: 1,
            isBackward: true
        ).packed([longest])
        let limit = shapes.room == .scant ? roomLimit / 16 : shapes.room == .usual ? roomLimit : 4 * roomLimit
        // Where memory is scant a single head may take more than that.
        guard graph.takeHeads(fitting: limit) || graph.roomByteCount <= roomLimit else { return Reservation() }
        return Reservation(keyRows: keyRows, parts: graph.partsOfGroup, roomByteCount: graph.roomByteCount)
    }

    // MARK: Calls

    private struct Request: Hashable {
        var spans: [AttentionSpan]
        var empty: CuDNNAttentionGraph
    }

    private static let requestLimit = 256

    /// nil where cuDNN cannot take a span.
    func calls(_ spans: [AttentionSpan], _ x: CuDNNOperands, scale: Float, isBackward: Bool) -> CuDNNCalls? {
        guard x.isSupported else { return nil }
        let request = Request(
            spans: spans,
            empty: CuDNNAttentionGraph(
                queryHeads: x.q.shape[1], keyValueHeads: x.k.shape[1], size: x.q.shape[2], scale: scale,
                isBackward: isBackward))
        if let calls = known[request] { return calls }
        if known.count >= CuDNNAttention.requestLimit { known = [:] }
        let calls = makeCalls(request)
        known[request] = .some(calls)
        return calls
    }

    private func makeCalls(_ request: Request) -> CuDNNCalls? {
        let isBackward = request.empty.isBackward
        var list: [CuDNNCall] = []
        for (spans, graph) in split(request.spans.filter { $0.queryCount > 0 }, request.empty) {
            var graph = graph
            guard !isBackward || graph.takeHeads(fitting: reserved.roomByteCount), SpanTables.fits(graph.sequences),
                let plan = plan(graph), !isBackward || plan.workspaceByteCount <= graph.workspaceByteCount
            else { return nil }
            list.append(CuDNNCall(spans: spans, graph: graph, plan: plan))
        }
        let calls = CuDNNCalls(list)
        return isBackward && (calls.keyRows > reserved.keyRows || calls.parts > reserved.parts) ? nil : calls
    }

    /// One span as it is. Otherwise those whose queries are all its keys apart from the others, and backward, where
    /// memory is for the longest of a call, as many of similar length together as fit.
    private func split(
        _ spans: [AttentionSpan], _ empty: CuDNNAttentionGraph
    ) -> [([AttentionSpan], CuDNNAttentionGraph)] {
        if spans.count == 1, spans[0].isExact(CuDNNAttention.exactMultiple) {
            return [(spans, empty.exactly(spans[0]))]
        }
        var result: [([AttentionSpan], CuDNNAttentionGraph)] = []
        for isWhole in [true, false] {
            var rest = spans.filter { ($0.queryCount == $0.keyCount) == isWhole }
            if empty.isBackward { rest.sort { ($0.keyCount, $1.keyStart) > ($1.keyCount, $0.keyStart) } }
            while !rest.isEmpty {
                let count = empty.isBackward ? fitting(rest, empty) : rest.count
                let taken = rest.prefix(count)
                result.append((taken.sorted { $0.queryStart < $1.queryStart }, empty.packed(taken)))
                rest.removeFirst(count)
            }
        }
        return result
    }

    /// How many of the first spans fit into the room together; at least one.
    private func fitting(_ spans: [AttentionSpan], _ empty: CuDNNAttentionGraph) -> Int {
        var count = 1
        while count < spans.count, empty.packed(spans.prefix(count + 1)).roomByteCount <= reserved.roomByteCount {
            count += 1
        }
        return count
    }

    private func plan(_ graph: CuDNNAttentionGraph) -> CuDNNPlan? {
        if let plan = plans[graph] { return plan }
        do throws(MartletError) {
            let plan = try graph.plan(cudnn)
            plans[graph] = plan
            return plan
        } catch {
            refusal = refusal ?? error
            plans[graph] = .some(nil)
            return nil
        }
    }

    // MARK: Running

    func run(_ call: CuDNNCall, _ x: CuDNNOperands, workspace: UInt) {
        guard device.failure == nil else { return }
        let graph = call.graph
        let bound = graph.isPacked ? tableSlots(call, x) : []
        do throws(MartletError) {
            for firstHead in stride(from: 0, to: graph.rowQueryHeads, by: graph.queryHeads) {
                try call.plan.run(bound + x.slots(call, firstHead: firstHead), workspace: workspace)
            }
        } catch {
            device.fail(error)
        }
    }

    private func tableSlots(_ call: CuDNNCall, _ x: CuDNNOperands) -> [(id: Int, address: UInt)] {
        let graph = call.graph
        let table = tables.table(
            SpanTables.Key(
                spans: call.spans, count: graph.sequences, firstKey: x.firstKey,
                queryRow: graph.rowQueryHeads * graph.size, keyRow: graph.rowKeyValueHeads * graph.size,
                logSumExpRow: graph.rowQueryHeads))
        let slots: [(CuDNNAttentionGraph.Slot, UInt)] = [
            (.queryOffsets, table.queryOffsets), (.keyOffsets, table.keyOffsets),
            (.logSumExpOffsets, table.logSumExpOffsets), (.queryCounts, table.queryCounts),
            (.keyCounts, table.keyCounts),
        ]
        return slots.map { ($0.rawValue, $1) }
    }
}

extension AttentionSpan {
    fileprivate func isExact(_ multiple: Int) -> Bool { queryCount % multiple == 0 && keyCount % multiple == 0 }
}

extension CuDNNOperands {
    /// cuDNN moves 16 bytes at a time.
    fileprivate var isSupported: Bool {
        q.dtype == .bfloat16 && q.shape[2] % 8 == 0 && v.shape[2] == q.shape[2]
            && [q, k, v, o, logSumExp].allSatisfy { $0.address % 16 == 0 }
    }

    /// The tensors of a call from `firstHead` on: packed ones from their first row, a single span from its own.
    fileprivate func slots(_ call: CuDNNCall, firstHead: Int) -> [(id: Int, address: UInt)] {
        let graph = call.graph, group = graph.rowQueryHeads / graph.rowKeyValueHeads
        let span = call.spans[0]
        let queryRow = graph.isPacked ? 0 : span.queryStart, keyRow = graph.isPacked ? firstKey : span.keyStart
        let query = UInt((queryRow * graph.rowQueryHeads + firstHead) * graph.size * 2)
        let key = UInt((keyRow * graph.rowKeyValueHeads + firstHead / group) * graph.size * 2)
        var slots: [(CuDNNAttentionGraph.Slot, UInt)] = [
            (.q, q.address + query), (.k, k.address + key), (.v, v.address + key), (.o, o.address + query),
            (.logSumExp, logSumExp.address + UInt((queryRow * graph.rowQueryHeads + firstHead) * 4)),
        ]
        if let gradients {
            let part = firstHead % group / graph.queryHeads
            let gradient = key - UInt(firstKey * graph.rowKeyValueHeads * graph.size * 2)
            slots += [
                (.dout, gradients.dout.address + query), (.dq, gradients.dq.address + query),
                (.dk, gradients.scratch.dk_PUGD[part].address + gradient),
                (.dv, gradients.scratch.dv_PUGD[part].address + gradient),
                (.rowSums, gradients.scratch.room.address),
            ]
        }
        return slots.map { ($0.rawValue, $1) }
    }
}
