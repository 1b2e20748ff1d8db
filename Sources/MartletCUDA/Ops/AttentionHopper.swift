internal import MartletCore

// The backward pass of attention on Hopper, for heads of 128 in bfloat16: attention_sm90_backward.cu.
//
// Floor      5 products of T x U x D a query head, half of them masked.
// Numerics   sums in float32 in a fixed order: blocks of keys add to dq in turns, heads of a group to dk and dv.

/// How a call is divided: an item is 256 keys of a span, 128 for each block of a cluster, for some of the query heads that share them.
struct HopperBackward {
    static let headSize = 128, keys = 128, queries = 64
    /// Blocks of a cluster.
    static let cluster = 2
    static let schedule = AttentionSchedule.keys(cluster * keys, queryRows: queries)
    static let sharedBytes = 231_168
    /// Steps of 64 queries that are worth an item of their own, with its share of dk and dv.
    private static let fewestSteps = 8

    /// Blocks of 128 keys times key/value heads.
    let blocks: Int
    /// Items of such a block: one for each head, or one for all.
    let parts: Int
    /// Parts of groups that run side by side. Enough that their items are as much work as one of the longest for (nearly)
    /// every cluster of the GPU, so that blocks of keys, which add to the same dq, need not wait for each other. More would
    /// spread over more of the L2 cache.
    let together: Int
    /// Sums of dk and dv of a block: parts that run side by side do not wait for each other. None where there is one item.
    let shares: Int

    init(
        items: Int, spans: [AttentionSpan], rows: Int, keyValueHeads G: Int, group: Int, multiprocessors: Int
    ) {
        let keyBlocks = HopperBackward.cluster * items
        blocks = keyBlocks * G
        let most = HopperBackward.mostShares(rows: rows, keyValueHeads: G, multiprocessors: multiprocessors)
        func shares(_ together: Int) -> Int { min(group, ceilDiv(together, G)) }
        func fits(_ together: Int) -> Bool { keyBlocks * G * shares(together) <= most }
        let pairs = spans.reduce(0) { $0 + $1.queryCount * max(0, 2 * $1.keyCount - $1.queryCount) / 2 }
        let longest = HopperBackward.cluster * HopperBackward.keys * (spans.map(\.queryCount).max() ?? 0)
        let clusters = multiprocessors / HopperBackward.cluster
        func fills(_ together: Int) -> Bool { 10 * together * pairs >= 9 * clusters * longest }
        func together(_ parts: Int) -> Int {
            let units = parts * G
            let divisors = (min(2, units)...units).filter { units.isMultiple(of: $0) && fits($0) }
            return divisors.first(where: fills) ?? divisors.last ?? units
        }
        let isShort = pairs < HopperBackward.fewestSteps * keyBlocks * HopperBackward.keys * HopperBackward.queries
        let isSplit = group > 1 && fits(together(group)) && !(isShort && 2 * blocks >= 3 * multiprocessors)
        parts = isSplit ? group : 1
        self.together = together(parts)
        self.shares = isSplit ? shares(self.together) : 0
    }

    /// Blocks that run at once.
    static func grid(multiprocessors: Int) -> Int { multiprocessors / cluster * cluster }

    /// The most shares of all blocks: so that their sums take about as much as those of dq.
    static func mostShares(rows: Int, keyValueHeads: Int, multiprocessors: Int) -> Int {
        4 * max(multiprocessors, ceilDiv(rows, keys) * keyValueHeads)
    }
}

/// Statistics turned to [Q, T]; sums of dq, its halves apart, and of dk and dv; tickets and turns.
struct HopperBackwardScratch {
    let lse_QT, delta_QT, querySums, keySums, state: Tensor

    init(_ scratch: inout Scratch, rows: Int, queryHeads: Int, tiles: Int, shares: Int) {
        let size = HopperBackward.headSize
        lse_QT = scratch.take([queryHeads, rows], .float32)
        delta_QT = scratch.take([queryHeads, rows], .float32)
        querySums = scratch.take([2, queryHeads, rows, size / 2], .float32)
        keySums = scratch.take([shares, 2 * HopperBackward.keys, size], .float32)
        state = scratch.take([1 + 2 * (tiles * queryHeads + shares)], .int32)
    }
}

extension CUDABackend {
    /// Whether attention over heads of this size can be made here.
    func hasHopperAttention(headSize: Int) -> Bool {
        attentionPath == .hopper && device.capability == 90 && computeDType == .bfloat16
            && headSize == HopperBackward.headSize
    }

    func orderRemark(on shapes: ScratchShapes) -> String? {
        guard !wantsOrder, shapes.trains, hasHopperAttention(headSize: shapes.headSize) else { return nil }
        return
            "'deterministic: false' changes nothing where heads have \(HopperBackward.headSize): attention's sums have a "
            + "fixed order there, and are faster than those without"
    }

    /// For the largest tile, even if every row is a sequence.
    func reserveHopperBackward(_ scratch: inout Scratch, _ shapes: ScratchShapes) {
        guard shapes.trains, shapes.tokens > 0, hasHopperAttention(headSize: shapes.headSize) else { return }
        let shares = HopperBackward.mostShares(
            rows: shapes.tokens, keyValueHeads: shapes.keyValueHeads, multiprocessors: device.multiprocessorCount)
        _ = HopperBackwardScratch(
            &scratch, rows: shapes.tokens, queryHeads: shapes.queryHeads, tiles: shapes.tokens,
            shares: shapes.queryHeads == shapes.keyValueHeads ? 0 : shares)
    }

    /// False where another way is taken.
    func hopperAttentionBackward(_ call: AttentionCall, _ gradients: AttentionGradients) -> Bool {
        guard hasHopperAttention(headSize: call.size), call.q_TQD.dtype == .bfloat16 else { return false }
        let table = attentionTables.table(HopperBackward.schedule, call.spans)
        let shape = HopperBackward(
            items: table.count, spans: call.spans, rows: call.rows, keyValueHeads: call.keyValueHeads,
            group: call.group, multiprocessors: device.multiprocessorCount)
        var scratch = scratch()
        let temporary = HopperBackwardScratch(
            &scratch, rows: call.rows, queryHeads: call.queryHeads, tiles: table.tiles,
            shares: shape.blocks * shape.shares)
        device.timed("attentionBackward") {
            hopperDelta(call, gradients, temporary)
            hopperProducts(call, gradients, temporary, shape, table)
            hopperFinish(call, gradients, temporary, shape, table)
        }
        return true
    }

    /// Asks for the kernels of both passes.
    func rehearseHopperAttention(_ call: AttentionCall) {
        guard hasHopperAttention(headSize: call.size) else { return }
        for pass in ["forward", "backward", "finish"] { _ = device.kernel("attention_sm90_\(pass).cu", "") }
    }

    private func hopperDelta(
        _ call: AttentionCall, _ gradients: AttentionGradients, _ temporary: HopperBackwardScratch
    ) {
        device.launch(
            device.kernel("attention_sm90_finish.cu", "attention_sm90_delta"),
            Grid(ceilDiv(call.rows * call.queryHeads, 16)), block: 256,
            [
                .tensor(call.o_TQD), .tensor(gradients.do_TQD), .tensor(call.logSumExp_TQ), .tensor(temporary.lse_QT),
                .tensor(temporary.delta_QT), .tensor(temporary.state), .int(temporary.state.count), .int(call.rows),
                .int(call.queryHeads),
            ])
    }

    private func hopperProducts(
        _ call: AttentionCall, _ gradients: AttentionGradients, _ temporary: HopperBackwardScratch,
        _ shape: HopperBackward, _ table: AttentionTables.Table
    ) {
        func map(_ tensor: Tensor, _ heads: Int, of rows: Int, box: Int) -> KernelArgument {
            .map(device.tensorMap(tensor, sizes: [call.size, heads, rows], box: [64, 1, box]))
        }
        let maps = [
            map(call.q_TQD, call.queryHeads, of: call.rows, box: HopperBackward.queries),
            map(call.k_UGD, call.keyValueHeads, of: call.keyRows, box: HopperBackward.keys),
            map(call.v_UGD, call.keyValueHeads, of: call.keyRows, box: HopperBackward.keys),
            map(gradients.do_TQD, call.queryHeads, of: call.rows, box: HopperBackward.queries),
        ]
        device.launch(
            device.kernel(
                "attention_sm90_backward.cu", "attention_sm90_backward", sharedBytes: HopperBackward.sharedBytes),
            Grid(min(HopperBackward.grid(multiprocessors: device.multiprocessorCount), shape.blocks * shape.parts)),
            block: 384,
            maps + [
                .tensor(temporary.lse_QT), .tensor(temporary.delta_QT), .address(table.address),
                .tensor(gradients.dk_UGD), .tensor(gradients.dv_UGD), .tensor(temporary.querySums),
                .tensor(temporary.keySums), .tensor(temporary.state), .int(table.count), .int(shape.parts),
                .int(max(1, shape.shares)), .int(shape.together), .int(table.tiles),
            ] + call.extents)
    }

    private func hopperFinish(
        _ call: AttentionCall, _ gradients: AttentionGradients, _ temporary: HopperBackwardScratch,
        _ shape: HopperBackward, _ table: AttentionTables.Table
    ) {
        let heads = call.queryHeads + (shape.shares > 0 ? 32 * call.keyValueHeads : 0)
        device.launch(
            device.kernel("attention_sm90_finish.cu", "attention_sm90_finish"), Grid(table.count * heads), block: 256,
            [
                .tensor(temporary.querySums), .tensor(temporary.keySums), .address(table.address),
                .tensor(gradients.dq_TQD), .tensor(gradients.dk_UGD), .tensor(gradients.dv_UGD), .int(table.count),
                .int(shape.shares),
            ] + call.extents)
    }
}
