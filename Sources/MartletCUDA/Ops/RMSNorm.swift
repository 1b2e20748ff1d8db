package import MartletCore

/// For a trained weight: each row's 1 / rms, and the weight's gradient summed over chunks of rows.
/// rows + min(512, ceil(rows / 8)) x width floats, of which fewer chunks may be in use.
struct NormScratch {
    let scale_T: Tensor
    let partial_CH: Tensor
    /// Rows of a chunk.
    let chunk: Int

    init(_ scratch: inout Scratch, rows: Int, width: Int) {
        chunk = max(8, ceilDiv(rows, 512))
        scale_T = scratch.take([rows], .float32)
        partial_CH = scratch.take([min(512, ceilDiv(rows, 8)), width], .float32).rows(0..<ceilDiv(rows, chunk))
    }
}

extension CUDABackend {
    package func rmsNorm(_ x_TH: Tensor, _ weight_H: Tensor, epsilon: Float, into y_TH: Tensor) {
        precondition(x_TH.count == y_TH.count && x_TH.dtype == y_TH.dtype && x_TH.count % weight_H.count == 0)
        guard x_TH.count > 0 else { return }
        let norm = NormLaunch(x_TH, weight_H)
        device.timed("rmsNorm") {
            device.launch(
                device.kernel("rms_norm.cu", "rms_norm", norm.defines), norm.grid, block: 256,
                [.tensor(x_TH), .tensor(weight_H), .float(epsilon), .tensor(y_TH), .int(norm.rows)])
        }
    }

    package func rmsNormBackward(
        _ x_TH: Tensor, _ weight_H: Tensor, epsilon: Float, _ dy_TH: Tensor,
        adding dx_TH: Tensor, accumulating dweight_H: Tensor?
    ) {
        precondition(x_TH.count == dy_TH.count && x_TH.count == dx_TH.count && x_TH.count % weight_H.count == 0)
        precondition(x_TH.dtype == dy_TH.dtype && x_TH.dtype == dx_TH.dtype)
        guard x_TH.count > 0 else { return }
        let norm = NormLaunch(x_TH, weight_H)
        var scratch = scratch()
        let sums = dweight_H.map { _ in NormScratch(&scratch, rows: norm.rows, width: norm.width) }
        device.timed("rmsNormBackward") {
            device.launch(
                device.kernel("rms_norm.cu", "rms_norm_backward", norm.defines), norm.grid, block: 256,
                [
                    .tensor(x_TH), .tensor(weight_H), .float(epsilon), .tensor(dy_TH), .tensor(dx_TH),
                    .optional(sums?.scale_T), .int(norm.rows),
                ])
            guard let sums, let dweight_H else { return }
            device.launch(
                device.kernel("rms_norm.cu", "rms_norm_weight", norm.defines),
                Grid(ceilDiv(norm.width, 2048), sums.partial_CH.shape[0]), block: 256,
                [
                    .tensor(x_TH), .tensor(dy_TH), .tensor(sums.scale_T), .tensor(sums.partial_CH), .int(norm.rows),
                    .int(sums.chunk),
                ])
            addRows(sums.partial_CH, adding: dweight_H)
        }
    }

    /// y[c] += sum over r of x[r, c], float32, in a fixed order.
    func addRows(_ x_RC: Tensor, adding y_C: Tensor) {
        let (rows, width) = (x_RC.shape[0], x_RC.shape[1])
        precondition(x_RC.dtype == .float32 && y_C.dtype == .float32 && y_C.count == width)
        device.launch(
            device.kernel("reduce.cu", "add_rows"), Grid(ceilDiv(width, 32)), block: 1024,
            [.tensor(x_RC), .tensor(y_C), .int(rows), .int(width)])
    }
}

/// How the kernels of rms_norm.cu are launched over a tensor.
struct NormLaunch {
    let rows: Int
    let width: Int
    let grid: Grid
    let defines: [KernelDefine]

    init(_ x_TH: Tensor, _ weight_H: Tensor) {
        width = weight_H.count
        rows = x_TH.count / width
        let threads = NormLaunch.threads(width: width)
        grid = Grid(ceilDiv(rows, 256 / threads))
        defines = [
            .storage(of: x_TH), .parameter(weight_H), KernelDefine("WIDTH", width), KernelDefine("THREADS", threads),
        ]
    }

    /// Threads of a row: at most 24 elements each, as long as a block suffices.
    static func threads(width: Int) -> Int {
        var threads = 32
        while threads < 256, threads * 24 < width { threads *= 2 }
        return threads
    }
}
