internal import MartletCore

/// Temporaries of projections on Hopper: the factors of up to three adapters in bf16, and their skinny products.
struct ProjectionScratch {
    let a, b, p, q: [Tensor]

    init(_ scratch: inout Scratch, rows: Int, width: Int, rank: Int) {
        func three(_ scratch: inout Scratch, _ count: Int) -> [Tensor] {
            (0..<HopperProjection.layerLimit).map { _ in scratch.take([count], .bfloat16) }
        }
        a = three(&scratch, rank * width)
        b = three(&scratch, rank * width)
        p = three(&scratch, rows * rank)
        q = three(&scratch, rows * rank)
    }
}

/// One call of the kernels of projection_*.cu: up to three layers that share their input, at least one with an adapter.
///
/// What an adapter keeps in `low` carries its scale here. So whether a layer comes this way must not depend on the tensors.
struct HopperProjection {
    static let layerLimit = 3

    private struct Layer {
        let weight_OI: Tensor
        let adapter: LoRA?
        /// The adapter's factors in bf16 and its skinny products; not there without one.
        let a_AI, b_OA, p_TA, q_TA: Tensor

        var outputs: Int { weight_OI.shape[0] }
    }

    private let device: Device
    private let layers: [Layer]
    private let x_TI: Tensor
    private let T, I, rank: Int
    private let scale: Float

    /// nil where the kernels do not serve these layers together.
    init?(_ backend: CUDABackend, _ x_TI: Tensor, _ layers: [Linear]) {
        let adapters = layers.compactMap(\.adapter)
        guard backend.device.capability == 90, backend.computeDType == .bfloat16,
            layers.count <= HopperProjection.layerLimit, let first = adapters.first
        else { return nil }
        let rank = first.a.shape[0], I = layers[0].weight_OI.shape[1]
        guard rank % 16 == 0, rank <= 128,
            adapters.allSatisfy({ $0.a.shape[0] == rank && $0.scale == first.scale && $0.dropout == nil }),
            layers.allSatisfy({ HopperProjection.serves($0.weight_OI) })
        else { return nil }
        device = backend.device
        self.x_TI = x_TI
        (self.rank, self.I, T, scale) = (rank, I, x_TI.count / I, first.scale)
        var layout = backend.scratch()
        let widest = max(I, layers.map { $0.weight_OI.shape[0] }.max() ?? 0)
        let scratch = ProjectionScratch(&layout, rows: T, width: widest, rank: rank), T = T
        func half(_ factor: Tensor, _ place: Tensor, _ shape: Shape) -> Tensor {
            guard factor.dtype != .bfloat16 else { return factor.reshaped(shape) }
            backend.convert(factor, into: place.reshaped(shape))
            return place.reshaped(shape)
        }
        self.layers = layers.enumerated().map { s, layer in
            let adapter = layer.adapter, low: Shape = [T, rank]
            return Layer(
                weight_OI: layer.weight_OI, adapter: adapter,
                a_AI: half(adapter?.a ?? scratch.a[s], scratch.a[s], [rank, I]),
                b_OA: half(adapter?.b ?? scratch.b[s], scratch.b[s], [layer.weight_OI.shape[0], rank]),
                p_TA: adapter?.low ?? scratch.p[s].reshaped(low), q_TA: scratch.q[s].reshaped(low))
        }
    }

    private static func serves(_ weight_OI: Tensor) -> Bool {
        weight_OI.dtype == .bfloat16 && weight_OI.shape[0] % 8 == 0 && weight_OI.shape[1] % 8 == 0
    }

    /// Each y = x W^T + p B^T, + residual where there is one (of a single layer).
    func forward(into y_TO: [Tensor], residual_TO: Tensor?) {
        projectDown()
        product(.forward, into: y_TO, residual_TO)
    }

    /// dx = the sum of dy W + q A, + residual; dA (+)= q^T x; dB (+)= dy^T p.
    func backward(_ dy_TO: [Tensor], into dx_TI: Tensor?, residual_TI: Tensor?, _ accumulation: Accumulation) {
        projectBack(dy_TO)
        if adapted.contains(where: { $0.1.adapter?.low == nil && $0.1.adapter?.db != nil }) { projectDown() }
        gradients(dy_TO, adds: accumulation.adds)
        if let dx_TI { product(.backward(dy_TO), into: [dx_TI], residual_TI) }
    }

    // MARK: Launches

    private var adapted: [(Int, Layer)] { layers.enumerated().filter { $0.element.adapter != nil }.map { ($0, $1) } }

    /// p = s x A^T of every adapter: together where their accumulators have room in the registers.
    private func projectDown() {
        let adapted = adapted.map(\.1), together = adapted.count * rank <= 64
        low(
            together ? [x_TI] : adapted.map { _ in x_TI }, adapted.map { ($0.a_AI, $0.p_TA) },
            isTransposed: false, count: together ? adapted.count : 1)
    }

    /// q = s dy B of every adapter.
    private func projectBack(_ dy_TO: [Tensor]) {
        low(adapted.map { dy_TO[$0.0] }, adapted.map { ($0.1.b_OA, $0.1.q_TA) }, isTransposed: true, count: 1)
    }

    private func low(_ sources: [Tensor], _ pairs: [(matrix: Tensor, out: Tensor)], isTransposed: Bool, count: Int) {
        let shape = LowShape(rows: T, count: count, rank: rank, multiprocessors: device.multiprocessorCount)
        let kernel = device.kernel(
            "projection_low.cu", "projection_low", shape.defines(isTransposed: isTransposed),
            sharedBytes: shape.sharedBytes)
        device.launch(
            kernel, Grid(ceilDiv(T, shape.rows), sources.count), block: 256,
            three(sources) + three(pairs.map(\.matrix)) + three(pairs.map(\.out))
                + (0..<3).map { .int(sources.indices.contains($0) ? sources[$0].count / T : 0) }
                + [.int(T), .float(scale)])
    }

    /// Every dA and dB that is wanted, in one launch.
    private func gradients(_ dy_TO: [Tensor], adds: Bool) {
        let jobs =
            adapted.compactMap { _, layer in layer.adapter?.da.map { ProjectionJob(layer.q_TA, x_TI, $0, I) } }
            + adapted.compactMap { s, layer in
                layer.adapter?.db.map { ProjectionJob(layer.p_TA, dy_TO[s], $0, layer.outputs, isOutputMajor: true) }
            }
        guard !jobs.isEmpty else { return }
        let pieces = jobs.reduce(0) { $0 + ceilDiv($1.width, 128) }
        let kernel = device.kernel(
            "projection_gradient.cu", "projection_gradient", [KernelDefine("RANK", rank)],
            sharedBytes: 2 * (16384 + 128 * rank))
        device.launch(
            kernel, Grid(pieces, 8), block: 128,
            [
                ProjectionJob.block(jobs.prefix(4)), ProjectionJob.block(jobs.dropFirst(4)), .int(T),
                .int(adds ? 1 : 0),
            ])
    }

    private enum Direction {
        case forward
        case backward([Tensor])
    }

    private func product(_ direction: Direction, into outputs: [Tensor], _ residual: Tensor?) {
        let isForward = if case .forward = direction { true } else { false }
        let tile = ProjectionTile(
            rows: T, widths: isForward ? layers.map(\.outputs) : [I], multiprocessors: device.multiprocessorCount)
        let kernel = device.kernel(
            "projection_sm90.cu", "projection",
            tile.defines(isTransposed: !isForward) + [KernelDefine("RANK", rank)], sharedBytes: 232_448)
        let maps = layers.indices.flatMap { tensorMaps(direction, $0, tile: tile) }
        let absent = (layers.count..<HopperProjection.layerLimit).flatMap { _ in maps[..<4] }
        let mask = layers.enumerated().reduce(0) { $0 | ($1.element.adapter == nil ? 0 : 1 << $1.offset) }
        device.launch(
            kernel, Grid(tile.grid(multiprocessors: device.multiprocessorCount)), block: 384,
            (maps + absent).map(KernelArgument.map) + three(outputs)
                + [.optional(residual), .int(T), .int(I)]
                + (0..<3).map { .int($0 < layers.count ? layers[$0].outputs : 0) } + [.int(mask)])
    }

    /// The maps of a, b and the adapter's extension of both, as the kernel's header says.
    private func tensorMaps(_ direction: Direction, _ s: Int, tile: ProjectionTile) -> [TensorMap] {
        let layer = layers[s], O = layer.outputs, rows = [64, 128]
        switch direction {
        case .forward:
            return [
                device.tensorMap(x_TI, sizes: [I, T], box: rows),
                device.tensorMap(layer.weight_OI, sizes: [I, O], box: [64, tile.share]),
                device.tensorMap(layer.p_TA, sizes: [rank, T], box: rows),
                device.tensorMap(layer.b_OA, sizes: [rank, O], box: [64, tile.share]),
            ]
        case .backward(let dy_TO):
            return [
                device.tensorMap(dy_TO[s], sizes: [O, T], box: rows),
                device.tensorMap(layer.weight_OI, sizes: [I, O], box: [64, 64]),
                device.tensorMap(layer.q_TA, sizes: [rank, T], box: rows),
                device.tensorMap(layer.a_AI, sizes: [I, rank], box: [64, 64]),
            ]
        }
    }

    private func three(_ tensors: [Tensor]) -> [KernelArgument] {
        (0..<3).map { .optional(tensors.indices.contains($0) ? tensors[$0] : nil) }
    }

    /// Every kernel for adapters of `rank` in tiles of `rows`.
    static func kernels(rank: Int, rows: Int, multiprocessors: Int) -> [KernelVariant] {
        let defines = [KernelDefine("RANK", rank)]
        let low = [3, 2, 1].filter { $0 == 1 || $0 * rank <= 64 }.flatMap { count in
            let shape = LowShape(rows: rows, count: count, rank: rank, multiprocessors: multiprocessors)
            return (count == 1 ? [false, true] : [false]).map {
                KernelVariant("projection_low.cu", shape.defines(isTransposed: $0))
            }
        }
        let products = [ProjectionTile.narrow, .wide].flatMap { tile in
            [false, true].map {
                KernelVariant("projection_sm90.cu", tile.defines(isTransposed: $0) + defines)
            }
        }
        return low + [KernelVariant("projection_gradient.cu", defines)] + products
    }
}

/// How projection_sm90.cu is cut; the sums are the same either way.
private struct ProjectionTile {
    let columns: Int
    /// Blocks of a cluster: they take tiles below each other, and share what they fetch of the weights.
    let cluster: Int

    static let narrow = ProjectionTile(columns: 128, cluster: 1)
    static let wide = ProjectionTile(columns: 256, cluster: 2)

    private init(columns: Int, cluster: Int) {
        (self.columns, self.cluster) = (columns, cluster)
    }

    /// By rounds of tiles, where a narrow one costs 144 columns' time: with all multiprocessors busy and the card at its power
    /// limit, as in a step of many tokens, four products of a layer took 2178 us in narrow tiles, 1910 in wide ones (H200, 8192
    /// tokens). So narrow ones serve few tokens, or such a number that wide ones leave many multiprocessors idle.
    init(rows: Int, widths: [Int], multiprocessors: Int) {
        func rounds(_ tile: ProjectionTile) -> Int {
            let tiles = ceilDiv(rows, 128 * tile.cluster) * widths.reduce(0) { $0 + ceilDiv($1, tile.columns) }
            return ceilDiv(tiles, multiprocessors / tile.cluster)
        }
        self = rounds(.narrow) * 144 < rounds(.wide) * 256 ? .narrow : .wide
    }

    /// Columns of the weights that one block fetches for its cluster.
    var share: Int { columns / cluster }

    func grid(multiprocessors: Int) -> Int { multiprocessors / cluster * cluster }

    func defines(isTransposed: Bool) -> [KernelDefine] {
        [
            KernelDefine("TRANSPOSED", isTransposed ? 1 : 0), KernelDefine("TILE", columns),
            KernelDefine("CLUSTER", cluster),
        ]
    }
}

/// How projection_low.cu is cut.
private struct LowShape {
    /// Rows of a block.
    let rows: Int
    let count, rank: Int

    /// Small tiles are cut finer, so that no multiprocessor is idle.
    init(rows: Int, count: Int, rank: Int, multiprocessors: Int) {
        self.rows = rows <= 16 * multiprocessors ? 16 : 32
        (self.count, self.rank) = (count, rank)
    }

    private var sliceBytes: Int { 512 * (rows + count * rank) }
    /// As many slices on the way as there is room for.
    private var depth: Int { max(2, min(8, 204_800 / sliceBytes)) }
    var sharedBytes: Int { depth * sliceBytes }

    func defines(isTransposed: Bool) -> [KernelDefine] {
        [
            KernelDefine("TRANSPOSED", isTransposed ? 1 : 0), KernelDefine("RANK", rank), KernelDefine("COUNT", count),
            KernelDefine("ROWS", rows), KernelDefine("DEPTH", depth),
        ]
    }
}

/// `Job` of projection_gradient.cu: dM (+)= u^T v.
private struct ProjectionJob {
    let u_TA, v_TC, gradient: Tensor
    let width: Int
    let isOutputMajor: Bool

    init(_ u_TA: Tensor, _ v_TC: Tensor, _ gradient: Tensor, _ width: Int, isOutputMajor: Bool = false) {
        (self.u_TA, self.v_TC, self.gradient) = (u_TA, v_TC, gradient)
        (self.width, self.isOutputMajor) = (width, isOutputMajor)
    }

    /// Four jobs; those that are not there have width 0.
    static func block(_ jobs: ArraySlice<ProjectionJob>) -> KernelArgument {
        var words = SIMD16<UInt64>.zero
        for (i, job) in jobs.enumerated() {
            words[4 * i] = UInt64(job.u_TA.address)
            words[4 * i + 1] = UInt64(job.v_TC.address)
            words[4 * i + 2] = UInt64(job.gradient.address)
            words[4 * i + 3] = UInt64(job.width) | (job.isOutputMajor ? 1 << 32 : 0)
        }
        return .block(words)
    }
}
