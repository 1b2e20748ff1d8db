internal import MartletCore

// Attention by cuDNN, where it can: bfloat16 on Hopper.
//
// Floor      2 (forward) and 5 (backward) products of T x U x D a query head, half of them masked.
// Numerics   P and dS are rounded to bfloat16 before their products; sums in float32. dQ is a product over all keys and
//            not a sum of atomic additions, so the same input gives the same bytes; dS therefore stands in scratch
//            memory, 2 T U bytes a query head, and heads go in parts where that exceeds the limit. A backend that is not
//            deterministic has the atomic sums, and needs no such memory. dQ of a tile with earlier keys is a sum of
//            several calls' in bfloat16, as dK and dV are sums of several tiles'.
// Shapes     a single long span runs as it is; several are packed rows at offsets, in calls of similar lengths.

/// What a backward pass takes: gradients of keys and values (cuDNN overwrites; ours add), once for every run of a group
/// of query heads, of queries that have earlier keys, and room for one call.
struct CuDNNAttentionScratch {
    let dk_NUGD: Tensor
    let dv_NUGD: Tensor
    let dq_TQD: Tensor
    let room: Tensor

    init(
        _ scratch: inout Scratch, runs: Int, keyRows: Int, keyWidth: Int, queryRows: Int, queryWidth: Int,
        roomByteCount: Int
    ) {
        dk_NUGD = scratch.take([runs, keyRows, keyWidth], .bfloat16)
        dv_NUGD = scratch.take([runs, keyRows, keyWidth], .bfloat16)
        dq_TQD = scratch.take([queryRows, queryWidth], .bfloat16)
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
        let operands = CuDNNOperands(q: q_TQD, k: k_UGD, v: v_UGD, o: o_TQD, logSumExp: logSumExp_TQ)
        guard let calls = cudnn.calls(spans, operands, scale: scale, isBackward: false) else { return false }
        device.timed("attention") {
            for call in calls.flatMap(\.list) {
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
        var layout = scratch()
        let scratch = CuDNNAttentionScratch(
            &layout, runs: calls.map(\.runsOfGroup).max() ?? 1, keyRows: calls.map(\.keyRows).max() ?? 0,
            keyWidth: k_UGD.shape[1] * k_UGD.shape[2], queryRows: calls.count > 1 ? q_TQD.shape[0] : 0,
            queryWidth: q_TQD.shape[1] * q_TQD.shape[2],
            roomByteCount: calls.flatMap(\.list).map(\.graph.roomByteCount).max() ?? 0)
        device.timed("attentionBackward") {
            for calls in calls {
                let target_TQD = calls.addsQueries ? scratch.dq_TQD : dq_TQD
                operands.firstKey = calls.firstKey
                operands.gradients = CuDNNOperands.Gradients(do_TQD, dq: target_TQD, scratch)
                for call in calls.list {
                    let sums = call.graph.rowSumByteCount + call.graph.querySumByteCount
                    cudnn.run(call, operands, workspace: scratch.room.address + UInt(sums))
                }
                addKeys(calls, scratch, adding: dk_UGD, dv_UGD)
                for rows in calls.addsQueries ? calls.queryRanges : [] {
                    add(scratch.dq_TQD.rows(rows), adding: dq_TQD.rows(rows))
                }
            }
        }
        return true
    }

    private func addKeys(
        _ calls: CuDNNCalls, _ scratch: CuDNNAttentionScratch, adding dk_UGD: Tensor, _ dv_UGD: Tensor
    ) {
        for run in 0..<calls.runsOfGroup {
            for rows in calls.keyRanges(run) {
                let from = rows.lowerBound - calls.firstKey..<rows.upperBound - calls.firstKey
                add(scratch.dk_NUGD[run].rows(from), adding: dk_UGD.rows(rows))
                add(scratch.dv_NUGD[run].rows(from), adding: dv_UGD.rows(rows))
            }
        }
    }
}
