package import MartletCore

/// For a trained norm: its weight's gradient, a sum for each block, at most 512 x D floats.
struct RotateScratch {
    let partial_BD: Tensor

    init(_ scratch: inout Scratch, tokens: Int, heads: Int, size: Int) {
        partial_BD = scratch.take([min(512, RotateLaunch.blocks(tokens * heads, size)), size], .float32)
    }
}

extension CUDABackend {
    /// `y_TND` may be `x_TND`.
    package func rotate(_ x_TND: Tensor, _ norm: HeadNorm?, _ rope: RoPE, _ positions_T: Tensor, into y_TND: Tensor) {
        precondition(x_TND.count == y_TND.count && x_TND.dtype == y_TND.dtype)
        guard x_TND.count > 0 else { return }
        let launch = RotateLaunch(x_TND, norm, rope, positions_T)
        // A thread takes its columns of two heads.
        let blocks = RotateLaunch.blocks(x_TND.shape[0] * ceilDiv(x_TND.shape[1], 2), x_TND.shape[2])
        device.timed("rotate") {
            device.launch(
                device.kernel("rotate.cu", "rotate", launch.defines), Grid(blocks), block: 256,
                launch.inputs + [.tensor(y_TND)] + launch.extents)
        }
    }

    /// `dx_TND` may be `dy_TND`.
    package func rotateBackward(
        _ x_TND: Tensor, _ norm: HeadNorm?, _ rope: RoPE, _ positions_T: Tensor, _ dy_TND: Tensor, into dx_TND: Tensor
    ) {
        precondition(x_TND.count == dy_TND.count && x_TND.count == dx_TND.count)
        precondition(x_TND.dtype == dy_TND.dtype && x_TND.dtype == dx_TND.dtype)
        guard x_TND.count > 0 else { return }
        let (tokens, heads, size) = (x_TND.shape[0], x_TND.shape[1], x_TND.shape[2])
        let launch = RotateLaunch(x_TND, norm, rope, positions_T, trains: norm?.dweight_D != nil)
        var scratch = scratch()
        let partial_BD = norm?.dweight_D.map { _ in
            RotateScratch(&scratch, tokens: tokens, heads: heads, size: size).partial_BD
        }
        let blocks = partial_BD?.shape[0] ?? RotateLaunch.blocks(tokens * heads, size)
        device.timed("rotateBackward") {
            device.launch(
                device.kernel("rotate.cu", "rotate_backward", launch.defines), Grid(blocks), block: 256,
                launch.inputs + [.tensor(dy_TND), .tensor(dx_TND), .optional(partial_BD)] + launch.extents)
            if let partial_BD, let dweight_D = norm?.dweight_D { addRows(partial_BD, adding: dweight_D) }
        }
    }
}

/// How the kernels of rotate.cu are launched.
private struct RotateLaunch {
    let defines: [KernelDefine]
    /// x, weight, epsilon, tables, positions.
    let inputs: [KernelArgument]
    /// T and N.
    let extents: [KernelArgument]

    init(_ x_TND: Tensor, _ norm: HeadNorm?, _ rope: RoPE, _ positions_T: Tensor, trains: Bool = false) {
        let (tokens, heads, size) = (x_TND.shape[0], x_TND.shape[1], x_TND.shape[2])
        precondition(size % 2 == 0 && size <= 512 && positions_T.count == tokens)
        precondition(rope.cosine_PJ.shape[1] == size / 2 && rope.sine_PJ.shape[1] == size / 2)
        precondition(rope.cosine_PJ.dtype == .float32 && rope.sine_PJ.dtype == .float32)
        defines = [
            .storage(of: x_TND), .parameter(norm?.weight_D ?? x_TND), KernelDefine("WIDTH", size),
            KernelDefine("TRAINS", trains ? 1 : 0),
        ]
        inputs = [
            .tensor(x_TND), .optional(norm?.weight_D), .float(norm?.epsilon ?? 0), .tensor(rope.cosine_PJ),
            .tensor(rope.sine_PJ), .tensor(positions_T),
        ]
        extents = [.int(tokens), .int(heads)]
    }

    /// Blocks of 256 threads for `parts`, each of as many threads as a head of `size` needs at 16 elements a thread, rounded
    /// up to a power of two.
    static func blocks(_ parts: Int, _ size: Int) -> Int {
        var lanes = 1
        while lanes * 16 < size { lanes *= 2 }
        return ceilDiv(parts, 256 / lanes)
    }
}
