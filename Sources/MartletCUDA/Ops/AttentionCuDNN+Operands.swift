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

/// Calls of an op whose gradients do not meet: no two have a query or a key in common.
struct CuDNNCalls {
    let list: [CuDNNCall]
    let firstKey: Int
    let keyRows: Int
    /// Whether dQ is there already, and to be added to.
    let addsQueries: Bool

    init(_ list: [CuDNNCall], addsQueries: Bool) {
        (self.list, self.addsQueries) = (list, addsQueries)
        let spans = list.flatMap(\.spans)
        firstKey = spans.map(\.keyStart).min() ?? 0
        keyRows = (spans.map { $0.keyStart + $0.keyCount }.max() ?? 0) - firstKey
    }

    /// The rows of dQ.
    var queryRanges: [Range<Int>] {
        list.flatMap(\.spans).map { $0.queryStart..<$0.queryStart + $0.queryCount }
    }

    /// Runs that share a key/value head, each of which leaves gradients of its own.
    var runsOfGroup: Int { list.map(\.graph.runsOfGroup).max() ?? 1 }

    /// The key rows that have a gradient in this `run`, neighbours joined.
    func keyRanges(_ run: Int) -> [Range<Int>] {
        let spans = list.filter { $0.graph.runsOfGroup > run }.flatMap(\.spans)
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

extension CuDNNOperands {
    /// cuDNN moves 16 bytes at a time.
    var isSupported: Bool {
        q.dtype == .bfloat16 && q.shape[2] % 8 == 0 && v.shape[2] == q.shape[2]
            && [q, k, v, o, logSumExp].allSatisfy { $0.address % 16 == 0 }
    }

    /// The tensors of a call from `firstHead` on: packed ones from their first row, a single span from its own.
    func slots(_ call: CuDNNCall, firstHead: Int) -> [(id: Int, address: UInt)] {
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
            let run = firstHead % group / graph.queryHeads
            let gradient = key - UInt(firstKey * graph.rowKeyValueHeads * graph.size * 2)
            slots += [
                (.dout, gradients.dout.address + query), (.dq, gradients.dq.address + query),
                (.dk, gradients.scratch.dk_NUGD[run].address + gradient),
                (.dv, gradients.scratch.dv_NUGD[run].address + gradient),
                (.rowSums, gradients.scratch.room.address),
            ]
            // cuDNN refuses to run with a tensor that the graph does not have.
            if !graph.isOrdered {
                slots.append((.querySums, gradients.scratch.room.address + UInt(graph.rowSumByteCount)))
            }
        }
        return slots.map { ($0.rawValue, $1) }
    }
}
