package import MartletCore

extension CUDABackend {
    package func attention(
        _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ spans: [AttentionSpan], scale: Float,
        into o_TQD: Tensor, logSumExp_TQ: Tensor
    ) {
        device.fail(MartletError("attention is not there yet"))
    }
    package func attentionBackward(
        _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ o_TQD: Tensor, _ logSumExp_TQ: Tensor,
        _ do_TQD: Tensor, _ spans: [AttentionSpan], scale: Float,
        into dq_TQD: Tensor, adding dk_UGD: Tensor, _ dv_UGD: Tensor
    ) {
        device.fail(MartletError("attention is not there yet"))
    }
}
