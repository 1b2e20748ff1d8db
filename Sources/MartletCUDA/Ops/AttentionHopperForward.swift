internal import MartletCore

// The forward pass of attention on Hopper, for heads of 128 in bfloat16: attention_sm90_forward.cu.
//
// Floor      2 products of T x U x D a query head, half of them masked.
// Numerics   a query's result depends on its keys alone, so that tiles of any size give the same bytes.

/// How a call is divided: an item is 128 queries of a span, for one head.
enum HopperForward {
    static let queries = 128
    static let sharedBytes = 229_504
    /// Keys and values that heads walked side by side may read: what stays in the L2 cache.
    private static let cachedBytes = 32 << 20

    /// Query heads that are walked side by side: those of as many key/value heads as the cache holds, one at least.
    static func together(_ call: AttentionCall) -> Int {
        let bytes = 4 * call.size * call.spans.reduce(0) { $0 + $1.keyCount }
        let heads = call.keyValueHeads
        let groups = (1...heads).last { heads.isMultiple(of: $0) && $0 * bytes <= cachedBytes } ?? 1
        return groups * call.group
    }
}

extension CUDABackend {
    /// False where another way is taken.
    func hopperAttention(_ call: AttentionCall) -> Bool {
        guard hasHopperAttention(headSize: call.size), call.q_TQD.dtype == .bfloat16 else { return false }
        let table = attentionTables.table(.queries(HopperForward.queries), call.spans)
        func map(_ tensor: Tensor, _ heads: Int, of rows: Int) -> KernelArgument {
            .map(device.tensorMap(tensor, sizes: [call.size, heads, rows], box: [64, 1, 128]))
        }
        device.timed("attention") {
            device.launch(
                device.kernel(
                    "attention_sm90_forward.cu", "attention_sm90_forward", sharedBytes: HopperForward.sharedBytes),
                Grid(min(device.multiprocessorCount, table.count * call.queryHeads)), block: 384,
                [
                    map(call.q_TQD, call.queryHeads, of: call.rows),
                    map(call.k_UGD, call.keyValueHeads, of: call.keyRows),
                    map(call.v_UGD, call.keyValueHeads, of: call.keyRows), .tensor(call.v_UGD), .tensor(call.o_TQD),
                    .tensor(call.logSumExp_TQ), .address(table.address), .int(table.count),
                    .int(HopperForward.together(call)), .int(call.queryHeads), .int(call.keyValueHeads),
                    .float(call.scale),
                ])
        }
        return true
    }
}
