package import MartletCore

/// Logits of as many rows as fit into 640 MiB, or a quarter of that where memory is scant, which become their gradient in
/// place.
struct CrossEntropyScratch {
    /// The most rows at a time.
    let chunk: Int
    let logits_CV: Tensor

    init(_ scratch: inout Scratch, rows: Int, vocabulary: Int, room: ScratchRoom, _ dtype: DType) {
        let fitting = (room == .scant ? 160 << 20 : 640 << 20) / max(1, vocabulary * dtype.byteCount)
        chunk = min(rows, max(1, fitting))
        logits_CV = scratch.take([chunk, vocabulary], dtype)
    }
}

extension CUDABackend {
    package func crossEntropy(
        _ x_TH: Tensor, _ head_VH: Tensor, _ targets_T: Tensor, gradientScale: Float?,
        into loss_T: Tensor, _ dx_TH: Tensor?, accumulating dhead_VH: Tensor?
    ) {
        let T = targets_T.count, V = head_VH.shape[0], H = head_VH.shape[1]
        precondition(x_TH.count == T * H && loss_T.count == T && x_TH.dtype == computeDType)
        guard T > 0 else { return }
        var layout = scratch()
        let scratch = CrossEntropyScratch(&layout, rows: T, vocabulary: V, room: room, computeDType)
        // Chunks of about one size, of whole tiles of the matrix product where there is more than one.
        let chunks = ceilDiv(T, scratch.chunk)
        let size = min(scratch.chunk, chunks == 1 ? T : roundUp(ceilDiv(T, chunks), to: 128))
        let scale = dx_TH == nil && dhead_VH == nil ? nil : gradientScale
        device.timed("crossEntropy") {
            for first in stride(from: 0, to: T, by: size) {
                let rows = first..<min(first + size, T)
                let x_CH = x_TH.reshaped([T, H]).rows(rows), logits_CV = scratch.logits_CV.rows(0..<rows.count)
                blas.product(Operand(x_CH), Operand(head_VH).transposed, into: logits_CV)
                rowLosses(logits_CV, targets_T.rows(rows), gradientScale: scale, into: loss_T.rows(rows))
                guard scale != nil else { continue }
                if let dx_TH { blas.product(Operand(logits_CV), Operand(head_VH), into: dx_TH.rows(rows)) }
                if let dhead_VH {
                    blas.product(Operand(logits_CV).transposed, Operand(x_CH), into: dhead_VH, adds: true)
                }
            }
        }
    }

    private func rowLosses(_ logits_CV: Tensor, _ targets_C: Tensor, gradientScale: Float?, into loss_C: Tensor) {
        device.launch(
            device.kernel("cross_entropy.cu", "cross_entropy", [half]), Grid(logits_CV.shape[0]), block: 1024,
            [
                .tensor(logits_CV), .tensor(targets_C), .tensor(loss_C), .int(logits_CV.shape[1]),
                .int(gradientScale == nil ? 0 : 1), .float(gradientScale ?? 0),
            ])
    }
}
