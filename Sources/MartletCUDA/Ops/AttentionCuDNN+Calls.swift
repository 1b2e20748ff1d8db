internal import MartletCore

/// Attention by cuDNN: its plans, and the tables of packed sequences.
final class CuDNNAttention {
    let cudnn: CuDNN
    let plans: CuDNNPlans
    /// Whether the same input gives the same bytes.
    let isDeterministic: Bool
    private let device: Device
    private let tables: SpanTables
    /// The same spans come back in every layer.
    private var known: [Request: [CuDNNCalls]?] = [:]
    private var limits = CuDNNLimits()

    private struct Request: Hashable {
        var spans: [AttentionSpan]
        var empty: CuDNNAttentionGraph
    }

    private static let requestLimit = 256

    init(_ device: Device, _ staging: Staging, isDeterministic: Bool) throws(MartletError) {
        guard device.capability == 90 else {
            throw MartletError(
                "cuDNN is not used", in: device.name, because: "its attention was only ever tried on Hopper",
                fix: "nothing: our own kernels take its place, at about half its speed")
        }
        cudnn = try CuDNN(device)
        plans = CuDNNPlans(cudnn, device)
        self.device = device
        self.isDeterministic = isDeterministic
        tables = SpanTables(staging)
    }

    // MARK: Memory

    /// As far as a 32nd of the GPU's memory allows; an eighth where memory is to spare, as little as may be where it is scant.
    private func limits(_ shapes: ScratchShapes) -> CuDNNLimits? {
        guard shapes.trains else { return nil }
        let usual = device.totalByteCount / 32
        let limits =
            switch shapes.room {
            case .scant: [usual / 16, usual / 8, usual / 4, usual / 2, usual]
            case .usual: [usual]
            case .ample: [4 * usual]
            }
        return limits.lazy.compactMap { CuDNNLimits(shapes, isOrdered: self.isDeterministic, limit: $0) }.first
    }

    /// Lays out what a backward pass takes, for the largest shapes.
    func layOut(_ scratch: inout Scratch, _ shapes: ScratchShapes) {
        guard let limits = limits(shapes) else { return }
        _ = CuDNNAttentionScratch(
            &scratch, runs: limits.runsOfGroup, keyRows: limits.keyRows,
            keyWidth: shapes.keyValueHeads * shapes.headSize, queryRows: limits.queryRows,
            queryWidth: shapes.queryHeads * shapes.headSize, roomByteCount: limits.roomByteCount)
    }

    func reserve(for shapes: ScratchShapes, in arena: Arena) {
        tables.reserve(in: arena)
        guard !arena.isMeasuring else { return }
        limits = limits(shapes) ?? CuDNNLimits()
        known = [:]
        beginPlans(shapes)
    }

    /// Those of full tiles: of one sequence where one can fill it, else of as many of the longest as fit.
    private func beginPlans(_ shapes: ScratchShapes) {
        let T = shapes.tokens, S = min(shapes.sequence, T)
        guard shapes.headSize % 8 == 0, shapes.queryHeads > 0, S > 0 else { return }
        var tiles = [
            stride(from: 0, through: T - S, by: S).map {
                AttentionSpan(queryStart: $0, queryCount: S, keyStart: $0, keyCount: S)
            }
        ]
        if shapes.sequence >= 2 * T {
            tiles.append([AttentionSpan(queryStart: 0, queryCount: T, keyStart: 0, keyCount: 2 * T)])
        }
        for isBackward in shapes.trains ? [false, true] : [false] {
            let empty = CuDNNAttentionGraph(shapes, isBackward: isBackward, isOrdered: isDeterministic)
            for spans in tiles {
                plans.begin((limits.steps(spans, empty) ?? []).joined().compactMap { limits.graph($0, empty) })
            }
        }
    }

    // MARK: Calls

    /// What to run one after the other; nil where cuDNN cannot take a span.
    func calls(_ spans: [AttentionSpan], _ x: CuDNNOperands, scale: Float, isBackward: Bool) -> [CuDNNCalls]? {
        guard x.isSupported else { return nil }
        let request = Request(
            spans: spans,
            empty: CuDNNAttentionGraph(
                queryHeads: x.q.shape[1], keyValueHeads: x.k.shape[1], size: x.q.shape[2], scale: scale,
                isBackward: isBackward, isOrdered: isDeterministic))
        if let calls = known[request] { return calls }
        if known.count >= CuDNNAttention.requestLimit { known = [:] }
        let calls = makeCalls(request)
        known[request] = .some(calls)
        return calls
    }

    private func makeCalls(_ request: Request) -> [CuDNNCalls]? {
        guard let steps = limits.steps(request.spans, request.empty) else { return nil }
        let isBackward = request.empty.isBackward
        var result: [CuDNNCalls] = []
        for (i, parts) in steps.enumerated() {
            var list: [CuDNNCall] = []
            for part in parts {
                guard let graph = limits.graph(part, request.empty), let plan = plans.plan(graph) else { return nil }
                list.append(CuDNNCall(spans: part.spans, graph: graph, plan: plan))
            }
            let calls = CuDNNCalls(list, addsQueries: i > 0)
            guard !isBackward || calls.keyRows <= limits.keyRows && calls.runsOfGroup <= limits.runsOfGroup else {
                return nil
            }
            result.append(calls)
        }
        return result.count > 1 && limits.queryRows == 0 ? nil : result
    }

    // MARK: Running

    func run(_ call: CuDNNCall, _ x: CuDNNOperands, workspace: UInt) {
        guard device.failure == nil else { return }
        let graph = call.graph
        let bound = graph.isPacked ? tableSlots(call, x) : []
        device.timedKernel("cuDNN attention") {
            do throws(MartletError) {
                for firstHead in stride(from: 0, to: graph.rowQueryHeads, by: graph.queryHeads) {
                    try call.plan.run(bound + x.slots(call, firstHead: firstHead), workspace: workspace)
                }
            } catch {
                device.fail(error)
            }
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
