package import MartletCore

extension CUDABackend {
    package func embedding(_ tokens_T: Tensor, _ table_VH: Tensor, into x_TH: Tensor) {
        precondition(x_TH.count == tokens_T.count * table_VH.shape[1])
        device.timed("embedding") {
            launchEmbedding("embedding", table_VH, x_TH, [.tensor(tokens_T), .tensor(table_VH), .tensor(x_TH)])
        }
    }

    /// `dtable_VH` is float32. The first row of each token adds up all rows of that token, in order.
    package func embeddingBackward(_ tokens_T: Tensor, _ dx_TH: Tensor, accumulating dtable_VH: Tensor) {
        precondition(dx_TH.count == tokens_T.count * dtable_VH.shape[1] && dtable_VH.dtype == .float32)
        device.timed("embeddingBackward") {
            launchEmbedding(
                "embedding_backward", dtable_VH, dx_TH,
                [.tensor(tokens_T), .tensor(dx_TH), .tensor(dtable_VH), .int(tokens_T.count)])
        }
    }

    /// A row of blocks for each token, 2048 columns a block.
    private func launchEmbedding(
        _ entry: String, _ table_VH: Tensor, _ x_TH: Tensor, _ arguments: [KernelArgument]
    ) {
        let width = table_VH.shape[1]
        guard x_TH.count > 0 else { return }
        let kernel = device.kernel(
            "embedding.cu", entry, [.storage(of: x_TH), .parameter(table_VH), KernelDefine("WIDTH", width)])
        device.launch(kernel, Grid(x_TH.count / width, ceilDiv(width, 2048)), block: 256, arguments)
    }
}
