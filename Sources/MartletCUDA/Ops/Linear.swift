package import MartletCore

/// Temporaries of a projection: the adapter's factors [A, I] and [O, A] and the skinny products [T, A], all in the compute
/// dtype; x with dropout [T, I] and its gradient; in float16 a trained router's weight [E, H].
struct LinearScratch {
    let a: Tensor
    let b: Tensor
    let p: Tensor
    let q: Tensor
    let dropped: Tensor
    let weight: Tensor

    init(_ scratch: inout Scratch, rows: Int, width: Int, rank: Int, drops: Bool, convertedCount: Int, _ dtype: DType) {
        a = scratch.take([rank * width], dtype)
        b = scratch.take([rank * width], dtype)
        p = scratch.take([rows * rank], dtype)
        q = scratch.take([rows * rank], dtype)
        dropped = scratch.take([drops ? rows * width : 0], dtype)
        weight = scratch.take([convertedCount], dtype)
    }
}

extension CUDABackend {
    package func linear(_ x_TI: Tensor, _ layer: Linear, firstRow: Int, into y_TO: Tensor, adds: Bool) {
        guard x_TI.count > 0 else { return }
        device.timed("linear") {
            if let hopper = HopperProjection(self, x_TI, [layer]) {
                hopper.forward(into: [y_TO], residual_TO: adds ? y_TO : nil)
            } else {
                LinearCall(self, x_TI, layer, firstRow: firstRow).forward(x_TI, into: y_TO, adds: adds)
            }
            if let bias_O = layer.bias_O { addBias(bias_O, adding: y_TO) }
        }
    }

    package func linear(_ x_TI: Tensor, _ layer: Linear, firstRow: Int, into y_TO: Tensor, residual_TO: Tensor) {
        guard x_TI.count > 0, let hopper = HopperProjection(self, x_TI, [layer]) else {
            set(y_TO, to: residual_TO)
            return linear(x_TI, layer, firstRow: firstRow, into: y_TO, adds: true)
        }
        device.timed("linear") {
            hopper.forward(into: [y_TO], residual_TO: residual_TO)
            if let bias_O = layer.bias_O { addBias(bias_O, adding: y_TO) }
        }
    }

    package func linear(_ x_TI: Tensor, _ layers: [Linear], firstRow: Int, into y_TO: [Tensor]) {
        guard x_TI.count > 0, let hopper = HopperProjection(self, x_TI, layers) else {
            for (layer, y_TO) in zip(layers, y_TO) { linear(x_TI, layer, firstRow: firstRow, into: y_TO, adds: false) }
            return
        }
        device.timed("linear") {
            hopper.forward(into: y_TO, residual_TO: nil)
            for (layer, y_TO) in zip(layers, y_TO) {
                if let bias_O = layer.bias_O { addBias(bias_O, adding: y_TO) }
            }
        }
    }

    package func linearBackward(
        _ x_TI: Tensor, _ layer: Linear, firstRow: Int, _ dy_TO: Tensor, into dx_TI: Tensor?, adds: Bool,
        gradients: Accumulation
    ) {
        guard x_TI.count > 0 else { return gradients == .first ? zero(layer.gradients) : () }
        device.timed("linearBackward") {
            if let hopper = HopperProjection(self, x_TI, [layer]) {
                hopper.backward([dy_TO], into: dx_TI, residual_TI: adds ? dx_TI : nil, gradients)
            } else {
                LinearCall(self, x_TI, layer, firstRow: firstRow)
                    .backward(x_TI, dy_TO, into: dx_TI, adds: adds, gradients)
            }
            trainWhole(x_TI, layer, dy_TO, gradients)
        }
    }

    package func linearBackward(
        _ x_TI: Tensor, _ layers: [Linear], firstRow: Int, _ dy_TO: [Tensor], into dx_TI: Tensor,
        gradients: Accumulation
    ) {
        guard x_TI.count > 0, let hopper = HopperProjection(self, x_TI, layers) else {
            for (s, layer) in layers.enumerated() {
                linearBackward(
                    x_TI, layer, firstRow: firstRow, dy_TO[s], into: dx_TI, adds: s > 0, gradients: gradients)
            }
            return
        }
        device.timed("linearBackward") {
            hopper.backward(dy_TO, into: dx_TI, residual_TI: nil, gradients)
            for (layer, dy_TO) in zip(layers, dy_TO) { trainWhole(x_TI, layer, dy_TO, gradients) }
        }
    }

    /// dW (+)= dy^T x;  db (+)= the sum of dy's rows
    private func trainWhole(_ x_TI: Tensor, _ layer: Linear, _ dy_TO: Tensor, _ gradients: Accumulation) {
        if let dweight_OI = layer.dweight_OI {
            blas.product(Operand(dy_TO).transposed, Operand(x_TI), into: dweight_OI, adds: gradients.adds)
        }
        guard let dbias_O = layer.dbias_O else { return }
        if gradients == .first { zero(dbias_O) }
        addColumns(dy_TO, adding: dbias_O)
    }
}

extension CUDABackend {
    private func addBias(_ bias_O: Tensor, adding y_TO: Tensor) {
        let rows = y_TO.shape[0], outputs = y_TO.shape[1]
        device.launch(
            device.kernel("bias.cu", "add_bias", [half]), Grid(rows, ceilDiv(outputs, 256)), block: 256,
            [.tensor(bias_O), .tensor(y_TO), .int(outputs)])
    }

    private func addColumns(_ dy_TO: Tensor, adding dbias_O: Tensor) {
        let rows = dy_TO.shape[0], outputs = dy_TO.shape[1]
        device.launch(
            device.kernel("bias.cu", "add_columns", [half]), Grid(ceilDiv(outputs, 256)), block: 256,
            [.tensor(dy_TO), .tensor(dbias_O), .int(rows), .int(outputs)])
    }
}

/// One projection of T rows, its weight and adapter made ready in the scratch memory.
private struct LinearCall {
    struct Factors {
        var a_AI: Tensor
        var b_OA: Tensor
        var scale: Float
        var dropout: Dropout?
        var low_TA: Tensor?
        var da_AI: Tensor?
        var db_OA: Tensor?
    }

    private let backend: CUDABackend
    private let T: Int
    private let weight_OI: Tensor
    private let factors: Factors?
    private let firstRow: Int
    private let scratch: LinearScratch

    init(_ backend: CUDABackend, _ x_TI: Tensor, _ layer: Linear, firstRow: Int) {
        let O = layer.weight_OI.shape[0], I = layer.weight_OI.shape[1], dtype = backend.computeDType
        let rank = layer.adapter?.a.shape[0] ?? 0, T = x_TI.count / max(1, I)
        let isConverted = layer.weight_OI.dtype != dtype
        var layout = backend.scratch()
        let scratch = LinearScratch(
            &layout, rows: T, width: max(O, I), rank: rank, drops: layer.adapter?.dropout != nil,
            convertedCount: isConverted ? O * I : 0, dtype)
        self.backend = backend
        self.T = T
        self.firstRow = firstRow
        self.scratch = scratch
        /// The tensor in the compute dtype, at `place` if it is not there already.
        func computed(_ tensor: Tensor, _ place: Tensor) -> Tensor {
            guard tensor.dtype != dtype else { return tensor }
            backend.convert(tensor, into: place)
            return place
        }
        weight_OI = isConverted ? computed(layer.weight_OI, scratch.weight.reshaped([O, I])) : layer.weight_OI
        factors = layer.adapter.map { adapter in
            Factors(
                a_AI: computed(adapter.a, scratch.a.reshaped([rank, I])),
                b_OA: computed(adapter.b, scratch.b.reshaped([O, rank])), scale: adapter.scale,
                dropout: adapter.dropout, low_TA: adapter.low, da_AI: adapter.da,
                db_OA: adapter.db)
        }
    }

    /// y (+)= x W^T + s p B^T
    func forward(_ x_TI: Tensor, into y_TO: Tensor, adds: Bool) {
        let blas = backend.blas
        blas.product(Operand(x_TI), Operand(weight_OI).transposed, into: y_TO, adds: adds)
        guard let factors else { return }
        let p_TA = project(input(x_TI, factors), factors)
        blas.product(Operand(p_TA), Operand(factors.b_OA).transposed, into: y_TO, alpha: factors.scale, adds: true)
    }

    /// dx (+)= dy W, and what the adapter adds.
    func backward(
        _ x_TI: Tensor, _ dy_TO: Tensor, into dx_TI: Tensor?, adds: Bool, _ gradients: Accumulation
    ) {
        if let dx_TI { backend.blas.product(Operand(dy_TO), Operand(weight_OI), into: dx_TI, adds: adds) }
        if let factors { backward(x_TI, dy_TO, factors, dx_TI, adds: gradients.adds) }
    }

    /// x, with the adapter's dropout if it has one.
    private func input(_ x_TI: Tensor, _ factors: Factors) -> Tensor {
        guard let dropout = factors.dropout else { return x_TI }
        let dropped_TI = scratch.dropped.reshaped([T, factors.a_AI.shape[1]])
        backend.dropped(x_TI, dropout, firstRow: firstRow, into: dropped_TI)
        return dropped_TI
    }

    /// p = x A^T
    private func project(_ x_TI: Tensor, _ factors: Factors) -> Tensor {
        let p_TA = factors.low_TA ?? scratch.p.reshaped([T, factors.a_AI.shape[0]])
        backend.blas.product(Operand(x_TI), Operand(factors.a_AI).transposed, into: p_TA)
        return p_TA
    }

    /// q = dy B;  dx += s q A;  dB (+)= s dy^T p;  dA (+)= s q^T x
    private func backward(_ x_TI: Tensor, _ dy_TO: Tensor, _ factors: Factors, _ dx_TI: Tensor?, adds: Bool) {
        let blas = backend.blas, scale = factors.scale
        let q_TA = scratch.q.reshaped([T, factors.a_AI.shape[0]]), x_TI = input(x_TI, factors)
        blas.product(Operand(dy_TO), Operand(factors.b_OA), into: q_TA)
        if let db_OA = factors.db_OA {
            let p_TA = factors.low_TA ?? project(x_TI, factors)
            blas.product(Operand(dy_TO).transposed, Operand(p_TA), into: db_OA, alpha: scale, adds: adds)
        }
        if let da_AI = factors.da_AI {
            blas.product(Operand(q_TA).transposed, Operand(x_TI), into: da_AI, alpha: scale, adds: adds)
        }
        guard let dx_TI else { return }
        guard let dropout = factors.dropout else {
            return blas.product(Operand(q_TA), Operand(factors.a_AI), into: dx_TI, alpha: scale, adds: true)
        }
        let dropped_TI = scratch.dropped.reshaped([T, factors.a_AI.shape[1]])
        blas.product(Operand(q_TA), Operand(factors.a_AI), into: dropped_TI, alpha: scale)
        backend.dropped(dropped_TI, dropout, firstRow: firstRow, adding: dx_TI)
    }
}
