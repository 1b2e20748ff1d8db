internal import MartletCore

// Attention by cuDNN, where it can: bfloat16 on Hopper.
//
// Floor      2 (forward) and 5 (backward) products of T x U x D a query head, half of them masked.
// Numerics   P and dS are rounded to bfloat16 before their products; sums in float32. dQ is a product over all keys and
//            not a sum of atomic additions, so the same input gives the same bytes; dS therefore stands in scratch
//            memory, 2 T U bytes a query head, and heads go in parts where that exceeds the limit.
// Shapes     a single long span runs as it is; several are packed rows at offsets, in calls of similar lengths.

/// What a backward pass takes: gradients of keys and values (cuDNN overwrites; ours add), once for every part of a group
/// of query heads, and room for one call.
struct CuDNNAttentionScratch {
    let dk_PUGD: Tensor
    let dv_PUGD: Tensor
    let room: Tensor

    init(_ scratch: inout Scratch, parts: Int, keyRows: Int, heads: Int, size: Int, roomByteCount: Int) {
        dk_PUGD = scratch.take([parts, keyRows, heads * size], .bfloat16)
        dv_PUGD = scratch.take([parts, keyRows, heads * size], .bfloat16)
        room = scratch.take([roomByteCount], .uint8)
    }
}

extension CUDABackend {
    /// As `attention`; false, and nothing done, where cuDNN is missing or does not support it.
    func cudnnAttention(
        _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ spans: [AttentionSpan], scale: Float,
        into o_TQD: Tensor, logSumExp_TQ: Tensor
    ) -> Bool {
        guard let cudnn = cudnnAttention else { return false }
        var operands = CuDNNOperands(q: q_TQD, k: k_UGD, v: v_UGD, o: o_TQD, logSumExp: logSumExp_TQ)
        guard let calls = cudnn.calls(spans, operands, scale: scale, isBackward: false) else { return false }
        operands.firstKey = calls.firstKey
        device.timed("attention") {
            for call in calls.list {
                var scratch = scratch()
                let room = scratch.take([call.plan.workspaceByteCount], .uint8)
                cudnn.run(call, operands, workspace: room.address)
            }
        }
        return true
    }

    /// As `attentionBackward`; false, and nothing done, where cuDNN is missing or does not support it.
    func cudnnAttentionBackward(
        _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ o_TQD: Tensor, _ logSumExp_TQ: Tensor,
        _ do_TQD: Tensor, _ spans: [AttentionSpan], scale: Float,
        into dq_TQD: Tensor, adding dk_UGD: Tensor, _ dv_UGD: Tensor
    ) -> Bool {
        guard let cudnn = cudnnAttention else { return false }
        var operands = CuDNNOperands(q: q_TQD, k: k_UGD, v: v_UGD, o: o_TQD, logSumExp: logSumExp_TQ)
        guard let calls = cudnn.calls(spans, operands, scale: scale, isBackward: true) else { return false }
        let (heads, size) = (k_UGD.shape[1], k_UGD.shape[2])
        var layout = scratch()
        let scratch = CuDNNAttentionScratch(
            &layout, parts: calls.parts, keyRows: calls.keyRows, heads: heads, size: size,
            roomByteCount: calls.list.map(\.graph.roomByteCount).max() ?? 0)
        operands.firstKey = calls.firstKey
        operands.gradients = CuDNNOperands.Gradients(do_TQD, dq: dq_TQD, scratch)
        device.timed("attentionBackward") {
            for call in calls.list {
                cudnn.run(call, operands, workspace: scratch.room.address + UInt(call.graph.rowSumByteCount))
            }
            for part in 0..<calls.parts {
                for rows in calls.keyRanges(part) {
                    let from = rows.lowerBound - calls.firstKey..<rows.upperBound - calls.firstKey
                    add(scratch.dk_PUGD[part].rows(from), adding: dk_UGD.rows(rows))
                    add(scratch.dv_PUGD[part].rows(from), adding: dv_UGD.rows(rows))
                }
            }
        }
        return true
    }
}
