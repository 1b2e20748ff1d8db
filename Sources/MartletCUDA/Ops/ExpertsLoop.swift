internal import MartletCore

/// Temporaries of the loop: the adapters in the compute dtype, and every routed row once at each station.
struct LoopScratch {
    let a1_EAH, b1_EFA, a2_EAF, b2_EHA: Tensor
    let tables: Tensor
    /// Rows of x, or of dy.
    let input_RH, rows_RH: Tensor
    let act_RF, dact_RF: Tensor
    let p_RA, q_RA: Tensor
    /// p in float, for the forward pass.
    let low_RA: Tensor
    let partial_R: Tensor
    /// Rows of an adapter's input under its mask, or of that input's gradient.
    let dropped: Tensor

    init(_ scratch: inout Scratch, _ s: ExpertsSize, _ dtype: DType, dropsOut: Bool) {
        a1_EAH = scratch.take([s.e, s.a, s.h], dtype)
        b1_EFA = scratch.take([s.e, 2 * s.f, s.a], dtype)
        a2_EAF = scratch.take([s.e, s.a, s.f], dtype)
        b2_EHA = scratch.take([s.e, s.h, s.a], dtype)
        tables = scratch.take([RoutingTables.count(rows: s.r, experts: s.e)], .int32)
        input_RH = scratch.take([s.r, s.h], dtype)
        rows_RH = scratch.take([s.r, s.h], dtype)
        act_RF = scratch.take([s.r, s.f], dtype)
        dact_RF = scratch.take([s.r, s.f], dtype)
        p_RA = scratch.take([s.r, s.a], dtype)
        q_RA = scratch.take([s.r, s.a], dtype)
        low_RA = scratch.take([s.r, s.a], .float32)
        partial_R = scratch.take([s.r], .float32)
        dropped = scratch.take([dropsOut ? s.r * max(s.h, s.f) : 0], dtype)
    }
}

/// The experts one after another, each by library products. Waits for the routing, so it is for checking, and for what
/// the grouped kernels do not take.
struct LoopExperts {
    private let backend: CUDABackend
    private let device: Device
    private let size: ExpertsSize
    private let routing: Routing
    private let experts: Experts
    private let scratch: LoopScratch
    private let tables: RoutingTables
    /// The step's flat index of the tile's first routed row.
    private let firstFlat: Int
    /// The rows of each expert that has any.
    private let groups: [(expert: Int, rows: Range<Int>)]

    init(_ backend: CUDABackend, _ size: ExpertsSize, _ routing: Routing, _ experts: Experts, _ firstRow: Int) {
        self.backend = backend
        device = backend.device
        self.size = size
        self.routing = routing
        self.experts = experts
        var layout = backend.scratch()
        firstFlat = firstRow * size.k
        let dropsOut = experts.gateUpAdapter?.dropout != nil || experts.downAdapter?.dropout != nil
        scratch = LoopScratch(&layout, size, backend.computeDType, dropsOut: dropsOut)
        tables = backend.tables(of: routing, at: scratch.tables)
        var offsets = [Int32](repeating: 0, count: size.e + 1)
        offsets.withUnsafeMutableBytes { backend.download(routing.offset_E1, into: $0) }
        groups =
            device.isIdle
            ? []
            : (0..<size.e).compactMap { expert in
                let rows = Int(offsets[expert])..<Int(offsets[expert + 1])
                return rows.isEmpty ? nil : (expert, rows)
            }
        convert(experts.gateUpAdapter, scratch.a1_EAH, scratch.b1_EFA)
        convert(experts.downAdapter, scratch.a2_EAF, scratch.b2_EHA)
    }

    private func convert(_ lora: LoRA?, _ a: Tensor, _ b: Tensor) {
        guard let lora else { return }
        for (factor, place) in [(lora.a, a), (lora.b, b)] {
            if factor.dtype == place.dtype {
                backend.set(place, to: factor)
            } else {
                backend.convert(factor, into: place)
            }
        }
    }

    func forward(_ x_TH: Tensor, _ gateUp_RF: Tensor, _ y_TH: Tensor?, _ residual_TH: Tensor) {
        let s = scratch, gateUp_RF = gateUp_RF.reshaped([size.r, 2 * size.f])
        gather(x_TH, weighted: false, into: s.input_RH)
        var lowInput = dropped(s.input_RH, experts.gateUpAdapter)
        for (e, rows) in groups {
            product(
                s.input_RH.rows(rows), lowInput.rows(rows), experts.gateUp_EFH[e], s.low_RA.rows(rows),
                experts.gateUpAdapter, s.a1_EAH[e], s.b1_EFA[e], into: gateUp_RF.rows(rows))
        }
        guard let y_TH else { return }
        launch("activate_rows", size.r, [.tensor(gateUp_RF), .tensor(s.act_RF), .int(size.f)])
        lowInput = dropped(s.act_RF, experts.downAdapter)
        for (e, rows) in groups {
            product(
                s.act_RF.rows(rows), lowInput.rows(rows), experts.down_EHF[e], s.low_RA.rows(rows),
                experts.downAdapter, s.a2_EAF[e], s.b2_EHA[e], into: s.rows_RH.rows(rows))
        }
        backend.set(y_TH, to: residual_TH)
        launch(
            "combine_rows", size.t,
            [
                .tensor(s.rows_RH), .tensor(tables.position_R), .tensor(routing.weight_TK), .tensor(y_TH), .int(size.h),
            ])
    }

    func backward(
        _ x_TH: Tensor, _ gateUp_RF: Tensor, _ dy_TH: Tensor, _ dx_TH: Tensor, _ dweight_TK: Tensor,
        _ accumulation: Accumulation
    ) {
        let s = scratch, gateUp_RF = gateUp_RF.reshaped([size.r, 2 * size.f]), adds = accumulation.adds
        if !adds { zeroGradientsWithoutRows() }
        gather(dy_TH, weighted: false, into: s.input_RH)
        for (e, rows) in groups {
            productBackward(
                s.input_RH.rows(rows), experts.down_EHF[e], s.q_RA.rows(rows), experts.downAdapter, s.a2_EAF[e],
                s.b2_EHA[e], into: s.dact_RF.rows(rows))
        }
        addDropped(experts.downAdapter, into: s.dact_RF)
        launch(
            "activate_backward", size.r,
            [
                .tensor(gateUp_RF), .tensor(s.dact_RF), .tensor(routing.order_R), .tensor(routing.weight_TK),
                .tensor(s.act_RF), .tensor(s.partial_R), .int(size.f),
            ])
        // The weight belongs to the rows of dy in every gradient of the down projection.
        gather(dy_TH, weighted: true, into: s.input_RH)
        var lowInput = dropped(s.act_RF, experts.downAdapter)
        for (e, rows) in groups {
            gradients(
                s.act_RF.rows(rows), lowInput.rows(rows), s.input_RH.rows(rows), experts.downAdapter, e, s.a2_EAF[e],
                s.b2_EHA[e],
                s.p_RA.rows(rows), s.q_RA.rows(rows), experts.ddown_EHF?[e], adds: adds)
        }
        gather(x_TH, weighted: false, into: s.input_RH)
        for (e, rows) in groups {
            productBackward(
                gateUp_RF.rows(rows), experts.gateUp_EFH[e], s.q_RA.rows(rows), experts.gateUpAdapter, s.a1_EAH[e],
                s.b1_EFA[e], into: s.rows_RH.rows(rows))
        }
        addDropped(experts.gateUpAdapter, into: s.rows_RH)
        lowInput = dropped(s.input_RH, experts.gateUpAdapter)
        for (e, rows) in groups {
            gradients(
                s.input_RH.rows(rows), lowInput.rows(rows), gateUp_RF.rows(rows), experts.gateUpAdapter, e, s.a1_EAH[e],
                s.b1_EFA[e],
                s.p_RA.rows(rows), s.q_RA.rows(rows), experts.dgateUp_EFH?[e], adds: adds)
        }
        backend.zero(dx_TH)
        launch(
            "combine_backward", size.t,
            [
                .tensor(s.rows_RH), .tensor(tables.position_R), .tensor(s.partial_R), .tensor(dx_TH),
                .tensor(dweight_TK), .int(size.h),
            ])
    }

    // MARK: Products of one expert

    /// y = x W^T + s p B^T;  p = masked x A^T / (1 - dropout)
    private func product(
        _ x: Tensor, _ lowInput: Tensor, _ weight: Tensor, _ p: Tensor, _ lora: LoRA?, _ a: Tensor, _ b: Tensor,
        into y: Tensor
    ) {
        backend.blas.product(Operand(x), Operand(weight).transposed, into: y)
        guard let lora else { return }
        backend.blas.product(Operand(lowInput), Operand(a).transposed, into: p, alpha: lora.growth)
        let rows = y.shape[0], outputs = y.shape[1]
        launch(
            "add_low", Grid(ceilDiv(rows, 8), ceilDiv(outputs, 256)),
            [
                .tensor(p), .tensor(b), .tensor(y), .float(lora.scale), .int(rows), .int(outputs), .int(p.shape[1]),
            ])
    }

    /// dx = dy W + s (dy B) A; under dropout the second term goes to `scratch.dropped`, at the rows of q.
    private func productBackward(
        _ dy: Tensor, _ weight: Tensor, _ q: Tensor, _ lora: LoRA?, _ a: Tensor, _ b: Tensor, into dx: Tensor
    ) {
        backend.blas.product(Operand(dy), Operand(weight), into: dx)
        guard let lora else { return }
        backend.blas.product(Operand(dy), Operand(b), into: q)
        guard lora.dropout != nil else {
            return backend.blas.product(Operand(q), Operand(a), into: dx, alpha: lora.scale, adds: true)
        }
        let width = a.shape[1], row = Int(q.address - scratch.q_RA.address) / (size.a * q.dtype.byteCount)
        let low = scratch.dropped.reshaped([size.r, width]).rows(row..<row + q.shape[0])
        backend.blas.product(Operand(q), Operand(a), into: low, alpha: lora.scale)
    }

    /// dW (+)= dy^T x, and with x under dropout dA (+)= s (dy B)^T x;  dB (+)= s dy^T (x A^T)
    private func gradients(
        _ x: Tensor, _ lowInput: Tensor, _ dy: Tensor, _ lora: LoRA?, _ expert: Int, _ a: Tensor, _ b: Tensor,
        _ p: Tensor, _ q: Tensor, _ dweight: Tensor?, adds: Bool
    ) {
        let blas = backend.blas
        if let dweight { blas.product(Operand(dy).transposed, Operand(x), into: dweight, adds: adds) }
        guard let lora else { return }
        if let da = lora.da?[expert] {
            blas.product(Operand(dy), Operand(b), into: q)
            blas.product(
                Operand(q).transposed, Operand(lowInput), into: da, alpha: lora.scale * lora.growth, adds: adds)
        }
        if let db = lora.db?[expert] {
            blas.product(Operand(lowInput), Operand(a).transposed, into: p, alpha: lora.growth)
            blas.product(Operand(dy).transposed, Operand(p), into: db, alpha: lora.scale, adds: adds)
        }
    }

    private func zeroGradientsWithoutRows() {
        let occupied = Set(groups.map(\.expert))
        for expert in 0..<size.e where !occupied.contains(expert) {
            for gradient in experts.gradients { backend.zero(gradient[expert]) }
        }
    }

    // MARK: Launches

    private func gather(_ source: Tensor, weighted: Bool, into rows: Tensor) {
        launch(
            "gather_rows", size.r,
            [
                .tensor(source), .tensor(routing.order_R), .optional(weighted ? routing.weight_TK : nil), .tensor(rows),
                .int(size.h),
            ])
    }

    /// The rows that the adapter sees, masked; what remains is not yet grown by 1 / (1 - p), so that it stays exact.
    private func dropped(_ rows: Tensor, _ lora: LoRA?) -> Tensor {
        guard let dropout = lora?.dropout else { return rows }
        let result = scratch.dropped.reshaped(rows.shape)
        drop(rows, dropout, scale: 1, into: result, adds: false)
        return result
    }

    /// Adds what `productBackward` left in `scratch.dropped`, masked and grown.
    private func addDropped(_ lora: LoRA?, into rows: Tensor) {
        guard let dropout = lora?.dropout else { return }
        drop(scratch.dropped.reshaped(rows.shape), dropout, scale: dropout.scale, into: rows, adds: true)
    }

    private func drop(_ rows: Tensor, _ dropout: Dropout, scale: Float, into y: Tensor, adds: Bool) {
        launch(
            "drop_rows", size.r,
            [
                .tensor(rows), .tensor(routing.order_R), .tensor(y), .long(firstFlat),
                .long(Int(truncatingIfNeeded: dropout.key)), .int(dropout.threshold), .float(scale),
                .int(rows.shape[1]), .int(adds ? 1 : 0),
            ])
    }

    private func launch(_ entry: String, _ blocks: Int, _ arguments: [KernelArgument]) {
        launch(entry, Grid(blocks), arguments)
    }

    private func launch(_ entry: String, _ grid: Grid, _ arguments: [KernelArgument]) {
        let kernel = device.kernel("experts_loop.cu", entry, [backend.half, KernelDefine("TOP_K", size.k)])
        device.launch(kernel, grid, block: 256, arguments)
    }
}

extension LoRA {
    /// What the input grows by under dropout.
    fileprivate var growth: Float { dropout?.scale ?? 1 }
}
