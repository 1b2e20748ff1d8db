package import MartletCore

/// The ways to compute attention on a GPU, best first.
package enum AttentionPath: String, Sendable, CaseIterable {
    /// Our own wgmma kernels where heads have 128 numbers, cuDNN for others. bfloat16 on Hopper.
    case hopper
    /// cuDNN: bfloat16 on Hopper.
    case cudnn
    /// Our own tensor core kernels: 16 bits, heads of 64, 128, and where shared memory suffices 192 and 256.
    case flash
    /// Any head size up to 256 and dtype, slowly; what the others are checked against.
    case plain
}

extension CUDABackend {
    package func attention(
        _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ spans: [AttentionSpan], scale: Float,
        into o_TQD: Tensor, logSumExp_TQ: Tensor
    ) {
        let call = AttentionCall(q_TQD, k_UGD, v_UGD, o_TQD, logSumExp_TQ, spans, scale)
        guard q_TQD.count > 0, call.hasQueries else { return }
        guard !device.isRehearsing else { return rehearseHopperAttention(call) }
        if hopperAttention(call) { return }
        if cudnnAttention(q_TQD, k_UGD, v_UGD, spans, scale: scale, into: o_TQD, logSumExp_TQ: logSumExp_TQ) { return }
        device.timed("attention") {
            if flashAttention(call) { return }
            plainAttention(call)
        }
    }

    package func attentionBackward(
        _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ o_TQD: Tensor, _ logSumExp_TQ: Tensor,
        _ do_TQD: Tensor, _ spans: [AttentionSpan], scale: Float,
        into dq_TQD: Tensor, adding dk_UGD: Tensor, _ dv_UGD: Tensor
    ) {
        let call = AttentionCall(q_TQD, k_UGD, v_UGD, o_TQD, logSumExp_TQ, spans, scale)
        let gradients = AttentionGradients(do_TQD: do_TQD, dq_TQD: dq_TQD, dk_UGD: dk_UGD, dv_UGD: dv_UGD)
        precondition(do_TQD.count == q_TQD.count && dq_TQD.count == q_TQD.count)
        precondition(dk_UGD.count == k_UGD.count && dv_UGD.count == k_UGD.count)
        guard q_TQD.count > 0, call.hasQueries else { return }
        guard !device.isRehearsing else { return rehearseHopperAttention(call) }
        if hopperAttentionBackward(call, gradients) { return }
        if cudnnAttentionBackward(
            q_TQD, k_UGD, v_UGD, o_TQD, logSumExp_TQ, do_TQD, spans, scale: scale, into: dq_TQD, adding: dk_UGD, dv_UGD)
        {
            return
        }
        if hopperAttentionBackward(call, gradients) { return }
        device.timed("attentionBackward") {
            if flashAttentionBackward(call, gradients) { return }
            plainAttentionBackward(call, gradients)
        }
    }

    /// Whether attention over heads of this size is our own flash kernels'.
    func usesFlash(headSize: Int) -> Bool {
        attentionPath != .plain && !hasHopperAttention(headSize: headSize) && cudnnAttention == nil
            && !FlashShape.candidates(headSize: headSize, device.architecture).isEmpty
    }

    /// The best way, unless `MARTLET_ATTENTION` names another.
    static func attentionPath(
        named name: String? = environment("MARTLET_ATTENTION")
    ) throws(MartletError) -> AttentionPath {
        try override("MARTLET_ATTENTION", "way to compute attention", named: name, of: AttentionPath.self) ?? .hopper
    }

    /// Any head size and dtype, slowly.
    private func plainAttention(_ call: AttentionCall) {
        let table = attentionTables.table(.spans, call.spans)
        device.launch(
            plainKernel("attention_plain", call), Grid(ceilDiv(call.rows * call.queryHeads, 8)), block: 256,
            call.inputs + [.tensor(call.o_TQD), .tensor(call.logSumExp_TQ), .address(table.address), .int(table.count)]
                + call.extents)
    }

    private func plainAttentionBackward(_ call: AttentionCall, _ gradients: AttentionGradients) {
        let table = attentionTables.table(.spans, call.spans)
        let inputs =
            call.inputs + [
                .tensor(call.o_TQD), .tensor(call.logSumExp_TQ), .tensor(gradients.do_TQD), .address(table.address),
            ]
        device.launch(
            plainKernel("attention_plain_queries", call), Grid(ceilDiv(call.rows * call.queryHeads, 8)), block: 256,
            inputs + [.tensor(gradients.dq_TQD), .int(table.count)] + call.extents)
        device.launch(
            plainKernel("attention_plain_keys", call), Grid(ceilDiv(call.keyRows * call.keyValueHeads, 8)), block: 256,
            inputs + [
                .tensor(gradients.dk_UGD), .tensor(gradients.dv_UGD), .int(table.count), .int(call.keyRows),
                .int(call.queryHeads), .int(call.keyValueHeads), .float(call.scale),
            ])
    }

    private func plainKernel(_ entry: String, _ call: AttentionCall) -> Kernel? {
        device.kernel("attention_plain.cu", entry, [half, KernelDefine("HEAD", call.size)])
    }
}

/// What both directions of a call share.
struct AttentionCall {
    let q_TQD, k_UGD, v_UGD, o_TQD, logSumExp_TQ: Tensor
    let spans: [AttentionSpan]
    let scale: Float
    let rows, keyRows, queryHeads, keyValueHeads, size: Int

    init(
        _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ o_TQD: Tensor, _ logSumExp_TQ: Tensor,
        _ spans: [AttentionSpan], _ scale: Float
    ) {
        (self.q_TQD, self.k_UGD, self.v_UGD, self.o_TQD) = (q_TQD, k_UGD, v_UGD, o_TQD)
        (self.logSumExp_TQ, self.spans, self.scale) = (logSumExp_TQ, spans, scale)
        (rows, queryHeads, size) = (q_TQD.shape[0], q_TQD.shape[1], q_TQD.shape[2])
        (keyRows, keyValueHeads) = (k_UGD.shape[0], k_UGD.shape[1])
        precondition(k_UGD.shape[2] == size && v_UGD.count == k_UGD.count && queryHeads % keyValueHeads == 0)
        precondition(o_TQD.count == q_TQD.count && logSumExp_TQ.count == rows * queryHeads)
        precondition(size <= 256, "heads of \(size): the kernels take 256 at most")
    }

    var hasQueries: Bool { spans.contains { $0.queryCount > 0 } }
    var group: Int { queryHeads / keyValueHeads }
    var inputs: [KernelArgument] { [.tensor(q_TQD), .tensor(k_UGD), .tensor(v_UGD)] }
    /// T, Q, G and the scale.
    var extents: [KernelArgument] { [.int(rows), .int(queryHeads), .int(keyValueHeads), .float(scale)] }
}

/// What a backward pass reads and writes besides.
struct AttentionGradients {
    let do_TQD, dq_TQD, dk_UGD, dv_UGD: Tensor
}
