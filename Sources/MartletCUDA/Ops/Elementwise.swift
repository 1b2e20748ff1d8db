package import MartletCore

/// Whether anything not finite was found: int32 [1].
struct FiniteScratch {
    let flag: Tensor

    init(_ scratch: inout Scratch) { flag = scratch.take([1], .int32) }
}

extension CUDABackend {
    package func add(_ x_N: Tensor, adding y_N: Tensor) {
        precondition(x_N.dtype == y_N.dtype && x_N.count == y_N.count)
        device.timed("add") {
            launchFlat("elementwise.cu", "add", over: x_N, [.tensor(x_N), .tensor(y_N), .long(x_N.count)])
        }
    }

    /// y = x where one is float32 and the other of 16 bits.
    package func convert(_ x_N: Tensor, into y_N: Tensor) {
        guard x_N.dtype != y_N.dtype else { return set(y_N, to: x_N) }
        precondition(x_N.count == y_N.count && y_N.isHalf != x_N.isHalf)
        device.timed("convert") {
            launchFlat(
                "elementwise.cu", y_N.isHalf ? "to_half" : "to_float", over: x_N,
                [.tensor(x_N), .tensor(y_N), .long(x_N.count)])
        }
    }

    /// Waits for the device. On a failed device the answer is yes: its own error is the one to show (`finish`).
    package func isFinite(_ x_N: Tensor) -> Bool {
        var scratch = scratch()
        let flag = FiniteScratch(&scratch).flag
        zero(flag)
        device.timed("isFinite") {
            launchFlat("elementwise.cu", "find_nonfinite", over: x_N, [.tensor(x_N), .tensor(flag), .long(x_N.count)])
        }
        var found: Int32 = 0
        withUnsafeMutableBytes(of: &found) { download(flag, into: $0) }
        return found == 0
    }

    /// Launches a kernel whose threads take eight elements each, in the storage and number of `x_N`.
    func launchFlat(_ file: String, _ entry: String, over x_N: Tensor, _ arguments: [KernelArgument]) {
        guard x_N.count > 0 else { return }
        let kernel = device.kernel(file, entry, [.storage(of: x_N)])
        device.launch(kernel, Grid(ceilDiv(x_N.count, 2048)), block: 256, arguments)
    }
}

extension Tensor {
    /// True for the GPU's 16-bit floats, false for float32; the kernels know no other floating-point storage.
    var isHalf: Bool {
        precondition(dtype.isFloat, "\(dtype) is not computed with")
        return dtype.isHalf
    }
}

extension KernelDefine {
    /// What `element` is in elements.cuh.
    static func storage(of x: Tensor) -> KernelDefine { KernelDefine("HALF", x.isHalf ? 1 : 0) }
    /// What `parameter` is in elements.cuh: weights are stored as activations are, trained norms in float32.
    static func parameter(_ weight: Tensor) -> KernelDefine {
        KernelDefine("PARAMETER_HALF", weight.isHalf ? 1 : 0)
    }
}
