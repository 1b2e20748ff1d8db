package import MartletCore

extension CUDABackend {
    /// `y_TF` may be one of the inputs.
    package func swiGLU(_ gate_TF: Tensor, _ up_TF: Tensor, into y_TF: Tensor) {
        precondition([up_TF, y_TF].allSatisfy { $0.count == gate_TF.count && $0.dtype == gate_TF.dtype })
        device.timed("swiGLU") {
            launchFlat(
                "elementwise.cu", "swiglu", over: gate_TF,
                [.tensor(gate_TF), .tensor(up_TF), .tensor(y_TF), .long(gate_TF.count)])
        }
    }

    package func swiGLUBackward(
        _ gate_TF: Tensor, _ up_TF: Tensor, _ dy_TF: Tensor, into dgate_TF: Tensor, _ dup_TF: Tensor
    ) {
        let others = [up_TF, dy_TF, dgate_TF, dup_TF]
        precondition(others.allSatisfy { $0.count == gate_TF.count && $0.dtype == gate_TF.dtype })
        device.timed("swiGLUBackward") {
            launchFlat(
                "elementwise.cu", "swiglu_backward", over: gate_TF,
                [
                    .tensor(gate_TF), .tensor(up_TF), .tensor(dy_TF), .tensor(dgate_TF), .tensor(dup_TF),
                    .long(gate_TF.count),
                ])
        }
    }
}
