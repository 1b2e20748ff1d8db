internal import MartletCore

/// Temporaries of the grouped kernels; contracts in the `.cu` files' headers.
struct GroupedScratch {
    // The adapters in the compute dtype, at the padded rank; B also transposed, as the backward pass reads it.
    let a1_EAH, b1_EFA, b1_EAF, a2_EAF, b2_EHA, b2_EAH: Tensor
    let tables: Tensor
    let act_RF: Tensor
    /// The down projection's output, or the gradient of the rows of x.
    let rows_RH: Tensor
    let p_RA, weighted_RA, q1_RA, q2_RA: Tensor
    let q2w_RA: Tensor
    let partial: Tensor

    init(_ scratch: inout Scratch, _ s: ExpertsSize, _ dtype: DType) {
        func half(_ scratch: inout Scratch, _ shape: Shape) -> Tensor { scratch.take(shape, dtype) }
        a1_EAH = half(&scratch, [s.e, s.a, s.h])
        b1_EFA = half(&scratch, [s.e, 2 * s.f, s.a])
        b1_EAF = half(&scratch, [s.e, s.a, 2 * s.f])
        a2_EAF = half(&scratch, [s.e, s.a, s.f])
        b2_EHA = half(&scratch, [s.e, s.h, s.a])
        b2_EAH = half(&scratch, [s.e, s.a, s.h])
        tables = scratch.take([RoutingTables.count(rows: s.r, experts: s.e)], .int32)
        act_RF = half(&scratch, [s.r, s.f])
        rows_RH = half(&scratch, [s.r, s.h])
        p_RA = half(&scratch, [s.r, s.a])
        weighted_RA = half(&scratch, [s.r, s.a])
        q1_RA = half(&scratch, [s.r, s.a])
        q2_RA = half(&scratch, [s.r, s.a])
        q2w_RA = half(&scratch, [s.r, s.a])
        partial = scratch.take([ceilDiv(s.f, PortableTile.partialColumns), s.r], .float32)
    }
}

/// One call of the grouped kernels: a layer's experts over the rows of a tile, without a wait for the host.
struct GroupedExperts {
    /// The four grouped products, numbered as the kernels number them.
    enum Mode: Int, CaseIterable { case up, down, dact, dx }

    private let device: Device
    private let backend: CUDABackend
    private let path: ExpertsPath
    private let size: ExpertsSize
    private let routing: Routing
    private let experts: Experts
    private let scratch: GroupedScratch
    private let tables: RoutingTables
    /// The adapters' own rank; `size` has a multiple of 16.
    private let rank: Int
    /// The adapters in the compute dtype, at `size`'s rank.
    private let a1_EAH, b1_EFA, a2_EAF, b2_EHA: Tensor

    init(_ backend: CUDABackend, _ path: ExpertsPath, _ size: ExpertsSize, _ routing: Routing, _ experts: Experts) {
        self.backend = backend
        device = backend.device
        self.path = path
        rank = size.a
        let size = size.grouped
        self.size = size
        self.routing = routing
        let isPadded = rank != size.a
        var experts = experts
        if isPadded {
            // What is kept for the backward pass has no room for the zeros.
            experts.gateUpAdapter?.low = nil
            experts.downAdapter?.low = nil
        }
        self.experts = experts
        var layout = backend.scratch()
        let scratch = GroupedScratch(&layout, size, backend.computeDType)
        self.scratch = scratch
        tables = backend.tables(of: routing, at: scratch.tables)
        func half(_ factor: Tensor?, _ place: Tensor) -> Tensor {
            guard let factor, isPadded || factor.dtype != place.dtype else { return factor ?? place }
            if isPadded { backend.pad(factor, into: place) } else { backend.convert(factor, into: place) }
            return place
        }
        a1_EAH = half(experts.gateUpAdapter?.a, scratch.a1_EAH)
        b1_EFA = half(experts.gateUpAdapter?.b, scratch.b1_EFA)
        a2_EAF = half(experts.downAdapter?.a, scratch.a2_EAF)
        b2_EHA = half(experts.downAdapter?.b, scratch.b2_EHA)
    }

    func forward(_ x_TH: Tensor, _ gateUp_RF: Tensor, _ y_TH: Tensor?, _ residual_TH: Tensor) {
        if let lora = experts.gateUpAdapter, !makesLow(.up) {
            project(x_TH, a1_EAH, lora.scale, into: p1_RA, gathers: true)
        }
        product(.up, x_TH, gateUp_RF, into: gateUp_RF, scratch.act_RF)
        guard let y_TH else { return }
        if let lora = experts.downAdapter, !makesLow(.down) {
            project(scratch.act_RF, a2_EAF, lora.scale, into: scratch.p_RA, weighted: lora.low, gathers: false)
        }
        product(.down, scratch.act_RF, gateUp_RF, into: scratch.rows_RH, nil)
        let kernel = device.kernel("combine.cu", "combine", combineDefines)
        device.launch(
            kernel, Grid(size.t), block: 256,
            [
                .tensor(scratch.rows_RH), .tensor(tables.position_R), .tensor(routing.weight_TK), .tensor(y_TH),
                .tensor(residual_TH),
            ])
    }

    /// dgateUp takes the place of `gateUp_RF`.
    func backward(
        _ x_TH: Tensor, _ gateUp_RF: Tensor, _ dy_TH: Tensor, _ dx_TH: Tensor, _ dweight_TK: Tensor,
        _ accumulation: Accumulation
    ) {
        let s = scratch, adds = accumulation.adds
        if let lora = experts.downAdapter, !makesLow(.dact) {
            transpose(b2_EHA, into: s.b2_EAH)
            project(dy_TH, s.b2_EAH, lora.scale, into: s.q2_RA, weighted: s.q2w_RA, gathers: true)
        }
        product(.dact, dy_TH, gateUp_RF, into: gateUp_RF, s.act_RF)
        if let lora = experts.gateUpAdapter {
            if lora.low == nil { project(x_TH, a1_EAH, lora.scale, into: p1_RA, gathers: true) }
            if let db = lora.db, let kernel = OutputAdapterKernel(path, rank: rank, outputs: 2 * size.f) {
                outputBackward(kernel, gateUp_RF, lora.scale, into: db, adds: adds)
            } else {
                transpose(b1_EFA, into: s.b1_EAF)
                project(gateUp_RF, s.b1_EAF, lora.scale, into: s.q1_RA, gathers: false)
                gradient(p1_RA, gateUp_RF, into: lora.db, adds: adds, gathers: false, outputMajor: true)
            }
        }
        product(.dx, gateUp_RF, gateUp_RF, into: s.rows_RH, nil)
        let kernel = device.kernel("combine.cu", "combine_backward", combineDefines)
        device.launch(
            kernel, Grid(size.t), block: 256,
            [
                .tensor(s.rows_RH), .tensor(tables.position_R), .tensor(s.partial),
                .int(partialCount), .int(size.r), .tensor(dx_TH), .tensor(dweight_TK),
            ])
        // Nothing waits for these, and dX and the combination find more of what was written last in the cache.
        downGradients(dy_TH, adds: adds)
        if let lora = experts.gateUpAdapter {
            gradient(s.q1_RA, x_TH, into: lora.da, adds: adds, gathers: true, outputMajor: false)
        }
    }

    /// Of the down projection's adapter.
    private func downGradients(_ dy_TH: Tensor, adds: Bool) {
        guard let lora = experts.downAdapter else { return }
        let s = scratch
        if lora.low == nil {
            project(s.act_RF, a2_EAF, lora.scale, into: s.p_RA, weighted: s.weighted_RA, gathers: false)
        }
        gradient(s.q2w_RA, s.act_RF, into: lora.da, adds: adds, gathers: false, outputMajor: false)
        gradient(lora.low ?? s.weighted_RA, dy_TH, into: lora.db, adds: adds, gathers: true, outputMajor: true)
    }

    /// Whether a mode makes its adapter's skinny product on the way, on Hopper: a launch less, and no second reading of its rows.
    private func makesLow(_ mode: Mode) -> Bool {
        path == .hopper && size.a == GroupedExperts.lowRank && mode != .dx
    }
    private static let lowRank = 16

    /// The kernel of a mode on Hopper.
    static func hopperFile(_ mode: Mode, rank: Int) -> String {
        if mode == .dx { return "grouped_gemm_dx_sm90.cu" }
        return rank == lowRank ? "grouped_gemm_low_sm90.cu" : "grouped_gemm_sm90.cu"
    }

    /// Where such a product is stored times the routing weight, for the adapters' gradients.
    private func weighted(_ mode: Mode) -> Tensor? {
        switch mode {
        case .down: experts.downAdapter?.low
        case .dact: scratch.q2w_RA
        default: nil
        }
    }

    /// Pieces of dact's columns, each of which leaves a partial sum a row.
    private var partialCount: Int { ceilDiv(size.f, path == .hopper ? 192 : PortableTile.partialColumns) }

    /// x A^T of the gate and up projections; of the down projection what is kept is weighted, as its gradient wants it.
    private var p1_RA: Tensor { experts.gateUpAdapter?.low ?? scratch.p_RA }

    // MARK: Launches

    private var combineDefines: [KernelDefine] { [KernelDefine("HIDDEN", size.h), KernelDefine("TOP_K", size.k)] }

    /// B [E, O, A] as [E, A, O].
    private func transpose(_ b_EOA: Tensor, into b_EAO: Tensor) {
        let outputs = b_EOA.shape[1]
        let kernel = device.kernel("lora_pack.cu", "lora_pack", [KernelDefine("WIDTH", size.a)])
        device.launch(
            kernel, Grid(ceilDiv(b_EOA.count, 64 * 256)), block: 256,
            [.tensor(b_EOA), .tensor(b_EAO), .int(outputs), .int(size.e)])
    }

    /// p = s x M^T for the rows of each expert, and `weighted` = the same times the routing weight.
    private func project(
        _ source: Tensor, _ matrix_EAI: Tensor, _ scale: Float, into p_RA: Tensor, weighted: Tensor? = nil,
        gathers: Bool
    ) {
        let shape = [
            KernelDefine("GATHERS", gathers ? 1 : 0), KernelDefine("WIDTH", matrix_EAI.shape[2]),
            KernelDefine("RANK", size.a), KernelDefine("TOP_K", size.k),
        ]
        backend.tiles.cut(KernelVariant("lora_project.cu", shape), ProjectTile.candidates) { tile in
            device.launch(
                device.kernel("lora_project.cu", "lora_project", shape + tile.defines), Grid(2 * size.tileCount),
                block: 256,
                [
                    .tensor(source), .tensor(matrix_EAI), .tensor(routing.order_R), .tensor(tables.tiles),
                    .tensor(tables.tileCount), .tensor(routing.weight_TK), .float(scale), .tensor(p_RA),
                    .optional(weighted),
                ])
        }
    }

    /// dM (+)= u^T v over the rows of each expert.
    private func gradient(
        _ u_RA: Tensor, _ v: Tensor, into dM: Tensor?, adds: Bool, gathers: Bool, outputMajor: Bool
    ) {
        guard let dM else { return }
        let width = dM.shape[outputMajor ? 1 : 2]
        let shape =
            [
                KernelDefine("GATHERS", gathers ? 1 : 0), KernelDefine("WIDTH", width), KernelDefine("RANK", size.a),
                KernelDefine("TOP_K", size.k), KernelDefine("OUTPUT_MAJOR", outputMajor ? 1 : 0),
            ] + (rank == size.a ? [] : [KernelDefine("OWN_RANK", rank)])
        backend.tiles.cut(
            KernelVariant("lora_gradient.cu", shape), GradientTile.candidates(rank: size.a, device.architecture)
        ) { tile in
            let kernel = device.kernel(
                "lora_gradient.cu", "lora_gradient", shape + tile.defines, sharedBytes: tile.sharedBytes(rank: size.a))
            device.launch(
                kernel, Grid(ceilDiv(width, 128), size.e), block: 128,
                [
                    .tensor(u_RA), .tensor(v), .tensor(routing.order_R), .tensor(routing.offset_E1), .tensor(dM),
                    .int(adds ? 1 : 0),
                ])
        }
    }

    /// q1 = s dgateUp B1 and dB1 (+)= dgateUp^T p1 from one reading of dgateUp.
    private func outputBackward(
        _ kernel: OutputAdapterKernel, _ dgateUp_RF: Tensor, _ scale: Float, into db: Tensor, adds: Bool
    ) {
        let outputs = 2 * size.f
        let rows = device.tensorMap(dgateUp_RF, sizes: [outputs, size.r], box: [64, OutputAdapterKernel.boxRows])
        let factor = device.tensorMap(b1_EFA, sizes: [size.a, outputs, size.e], box: [size.a, 64, 1])
        device.launch(
            device.kernel(
                kernel.variant.file, "lora_backward", kernel.variant.defines, sharedBytes: kernel.sharedBytes),
            Grid(OutputAdapterKernel.parts * size.e), block: 128,
            [
                .map(rows), .map(factor), .tensor(p1_RA), .tensor(routing.offset_E1), .float(scale),
                .tensor(scratch.q1_RA), .tensor(db), .int(adds ? 1 : 0),
            ])
    }

    private func product(_ mode: Mode, _ a: Tensor, _ gateUp_RF: Tensor, into out: Tensor, _ act_RF: Tensor?) {
        let adapter = mode == .up || mode == .dx ? experts.gateUpAdapter : experts.downAdapter
        let hasAdapter = adapter != nil
        let defines = [
            KernelDefine("MODE", mode.rawValue), KernelDefine("HIDDEN", size.h), KernelDefine("INNER", size.f),
            KernelDefine("TOP_K", size.k), KernelDefine("RANK", hasAdapter ? size.a : 0),
        ]
        let rest: [KernelArgument] = [
            .tensor(a), .tensor(routing.order_R), .tensor(tables.tiles), .tensor(tables.tileCount),
            .tensor(routing.weight_TK), .tensor(gateUp_RF), .tensor(out), .optional(act_RF), .tensor(scratch.partial),
            .int(size.r),
        ]
        guard path == .hopper else { return portable(mode, a, defines, rest, hasAdapter: hasAdapter) }
        let maps = tensorMaps(mode, a, hasAdapter: hasAdapter).map(KernelArgument.map)
        guard mode != .dx else { return inputGradient(maps, defines, into: out) }
        var arguments = maps + rest, entry = "grouped_gemm"
        if let adapter, makesLow(mode) {
            arguments += [
                .tensor(adapterOperands(mode).p), .optional(weighted(mode)), .float(adapter.scale),
            ]
            entry = "grouped_gemm_low"
        }
        device.launch(
            device.kernel("\(entry)_sm90.cu", entry, defines, sharedBytes: 231_648), Grid(device.multiprocessorCount),
            block: 384, together: makesLow(mode), arguments)
    }

    /// dX on Hopper: tiles of its own, which follow the routing more closely.
    private func inputGradient(_ maps: [KernelArgument], _ defines: [KernelDefine], into out: Tensor) {
        let kernel = device.kernel("grouped_gemm_dx_sm90.cu", "grouped_gemm_dx", defines, sharedBytes: 216_256)
        device.launch(
            kernel, Grid(device.multiprocessorCount), block: 384,
            maps + [.tensor(tables.parts), .tensor(tables.partCount), .tensor(out)])
    }

    private func portable(
        _ mode: Mode, _ a: Tensor, _ defines: [KernelDefine], _ rest: [KernelArgument], hasAdapter: Bool
    ) {
        let outputs = mode == .up ? 2 * size.f : mode == .dact ? size.f : size.h
        let weight = mode == .up || mode == .dx ? experts.gateUp_EFH : experts.down_EHF
        let (p, matrix) = adapterOperands(mode)
        let operands: [KernelArgument] = [
            .tensor(a), .tensor(weight), .optional(hasAdapter ? p : nil), .optional(hasAdapter ? matrix : nil),
        ]
        backend.tiles.cut(
            KernelVariant("grouped_gemm_sm80.cu", defines), PortableTile.candidates(device.architecture)
        ) { tile in
            let kernel = device.kernel(
                "grouped_gemm_sm80.cu", "grouped_gemm", defines + tile.defines, sharedBytes: tile.sharedBytes)
            device.launch(
                kernel, Grid(size.tileCount * ceilDiv(outputs, tile.columns)), block: tile.columns, operands + rest)
        }
    }

    /// The adapter's extension of both operands: the skinny product, and the matrix that it is multiplied by.
    private func adapterOperands(_ mode: Mode) -> (p: Tensor, matrix: Tensor) {
        switch mode {
        case .up: (p1_RA, b1_EFA)
        case .down: (scratch.p_RA, b2_EHA)
        case .dact: (scratch.q2_RA, a2_EAF)
        case .dx: (scratch.q1_RA, a1_EAH)
        }
    }

    /// The maps of a, b and the adapter's extension of both, or of what the first is made by; sizes innermost first, boxes as
    /// the kernels' headers say.
    private func tensorMaps(_ mode: Mode, _ a: Tensor, hasAdapter: Bool) -> [TensorMap] {
        let (r, h, f, e, rank) = (size.r, size.h, size.f, size.e, size.a)
        let rows = mode == .dx ? [64, 48] : [64, 128]
        func map(_ tensor: Tensor, _ sizes: [Int], _ box: [Int]) -> TensorMap {
            device.tensorMap(tensor, sizes: sizes, box: box)
        }
        let (weight, weightSizes, box): (Tensor, [Int], [Int]) =
            switch mode {
            case .up: (experts.gateUp_EFH, [h, 2 * f, e], [64, 96, 1])
            case .down: (experts.down_EHF, [f, h, e], [64, 192, 1])
            case .dact: (experts.down_EHF, [f, h, e], [64, 64, 1])
            case .dx: (experts.gateUp_EFH, [h, 2 * f, e], [64, 64, 1])
            }
        let aSizes = mode == .up || mode == .dact ? [h, size.t] : mode == .down ? [f, r] : [2 * f, r]
        let aBox = mode == .down && hasAdapter && makesLow(mode) ? [64, 32] : rows
        let maps = [map(a, aSizes, aBox), map(weight, weightSizes, box)]
        guard hasAdapter else { return maps + maps }
        let (p, matrix) = adapterOperands(mode)
        let matrixSizes =
            switch mode {
            case .up: [rank, 2 * f, e]
            case .down: [rank, h, e]
            case .dact: [f, rank, e]
            case .dx: [h, rank, e]
            }
        let first =
            switch mode {
            case .up where makesLow(mode): map(a1_EAH, [h, rank, e], [64, rank, 1])
            case .down where makesLow(mode): map(a2_EAF, [f, rank, e], [64, rank, 1])
            case .dact where makesLow(mode): map(b2_EHA, [rank, h, e], [rank, 64, 1])
            default: map(p, [rank, r], rows)
            }
        return maps + [first, map(matrix, matrixSizes, box)]
    }
}

extension CUDABackend {
    /// A factor [E, A, I] or [E, O, A] in the compute dtype at the larger rank of `place`, zeros behind its own.
    fileprivate func pad(_ factor: Tensor, into place: Tensor) {
        // The axes that differ, and what follows them.
        let isLast = factor.shape[2] != place.shape[2], axis = isLast ? 2 : 1
        let length = factor.shape[axis] * (isLast ? 1 : factor.shape[2])
        let padded = place.shape[axis] * (isLast ? 1 : place.shape[2])
        let kernel = device.kernel("lora_pad.cu", "lora_pad", [.storage(of: factor)])
        device.launch(
            kernel, Grid(ceilDiv(place.count, 256)), block: 256,
            [.tensor(factor), .tensor(place), .int(length), .int(padded), .long(place.count)])
    }
}
