package import MartletCore

extension CUDABackend {
    /// y = mask * x / (1 - p), the dropout of a projection's input; `firstRow` is the step's row of row 0. y may be x.
    package func dropped(_ x_TI: Tensor, _ dropout: Dropout, firstRow: Int, into y_TI: Tensor) {
        launchDropout(x_TI, dropout, firstRow, y_TI, adds: false)
    }

    /// y += mask * x / (1 - p): the way of a gradient back through the dropout.
    package func dropped(_ x_TI: Tensor, _ dropout: Dropout, firstRow: Int, adding y_TI: Tensor) {
        launchDropout(x_TI, dropout, firstRow, y_TI, adds: true)
    }

    /// Normal numbers around 0; each depends on `seed` and its own index alone.
    package func fillNormal(_ x_N: Tensor, standardDeviation: Float, seed: UInt64) {
        device.timed("fillNormal") {
            launchFlat(
                "random.cu", "fill_normal", over: x_N,
                [.tensor(x_N), .long(x_N.count), .long(Int(truncatingIfNeeded: seed)), .float(standardDeviation)])
        }
    }

    /// Uniform numbers, those of `RandomStream`.
    package func fillUniform(_ x_N: Tensor, bound: Float, seed: UInt64) {
        device.timed("fillUniform") {
            launchFlat(
                "random.cu", "fill_uniform", over: x_N,
                [.tensor(x_N), .long(x_N.count), .long(Int(truncatingIfNeeded: seed)), .float(bound)])
        }
    }

    private func launchDropout(_ x_TI: Tensor, _ dropout: Dropout, _ firstRow: Int, _ y_TI: Tensor, adds: Bool) {
        precondition(x_TI.dtype == y_TI.dtype && x_TI.count == y_TI.count)
        let width = x_TI.shape[1]
        device.timed("dropout") {
            launchFlat(
                "random.cu", "dropout", over: x_TI,
                [
                    .tensor(x_TI), .tensor(y_TI), .long(x_TI.count), .long(firstRow * width),
                    .long(Int(truncatingIfNeeded: dropout.key)), .int(dropout.threshold), .float(dropout.scale),
                    .int(adds ? 1 : 0),
                ])
        }
    }
}

extension Dropout {
    /// word >> 8 is a 24-bit fraction; it is at least p exactly when the integer is at least ceil(p 2^24).
    var threshold: Int { Int((Double(min(probability, 1)) * 0x1p24).rounded(.up)) }
    /// What is kept grows by this.
    var scale: Float { 1 / (1 - probability) }
}
