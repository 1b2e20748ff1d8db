internal import MartletCore

/// The block of attention_flash.cu for a head size and an architecture.
struct FlashShape: Tile {
    var warps: Int
    /// Queries of a warp.
    var warpRows: Int
    /// Tiles of 64 keys or values in shared memory.
    var ring = 2
    /// Blocks that share a multiprocessor.
    var blocks: Int
    let headSize: Int

    init?(headSize: Int, sharedBytes: Int) {
        self.headSize = headSize
        let isSmall = sharedBytes < 96 << 10
        switch headSize {
        case 64: (warps, warpRows, blocks) = (4, 32, isSmall ? 2 : 3)
        case 128: (warps, warpRows, blocks) = (4, 32, sharedBytes > 128 << 10 ? 2 : 1)
        case 192, 256:
            guard !isSmall else { return nil }
            (warps, warpRows, blocks) = (sharedBytes > 128 << 10 ? 8 : 4, 16, 1)
        default: return nil
        }
    }

    var queries: Int { warps * warpRows }

    var sharedBytes: Int { 2 * headSize * (queries + 64 * ring) }
    /// Beside `HEAD`.
    var defines: [KernelDefine] {
        [
            KernelDefine("WARPS", warps), KernelDefine("WARP_ROWS", warpRows), KernelDefine("RING", ring),
            KernelDefine("BLOCKS", blocks),
        ]
    }
}

/// The block of attention_flash_backward.cu.
struct FlashBackwardShape {
    var keys: Int
    var queries: Int
    var warps: Int
    /// Blocks of queries in shared memory.
    var stages: Int
    let headSize: Int

    /// The largest block that fits in a block's shared memory.
    init?(headSize: Int, sharedBytes: Int) {
        let candidates: [(Int, Int, Int, Int)]
        switch headSize {
        case 64: candidates = [(128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 1)]
        case 128: candidates = [(128, 64, 8, 2), (64, 64, 4, 1), (32, 64, 4, 1)]
        case 192: candidates = [(64, 64, 8, 2), (32, 64, 4, 1)]
        case 256: candidates = [(64, 64, 8, 2), (64, 64, 8, 1)]
        default: return nil
        }
        self.headSize = headSize
        (keys, queries, warps, stages) = (0, 0, 0, 0)
        for candidate in candidates {
            (keys, queries, warps, stages) = candidate
            // The ticket takes 128 bytes.
            if self.sharedBytes + 128 <= sharedBytes { return }
        }
        return nil
    }

    /// Tiles of keys, values, queries and output gradients, of P and dS; two statistics of every query.
    var sharedBytes: Int {
        4 * headSize * (keys + stages * queries) + 4 * keys * queries + 8 * stages * queries
    }
    var defines: [KernelDefine] {
        [
            KernelDefine("HEAD", headSize), KernelDefine("KEYS", keys), KernelDefine("QUERIES", queries),
            KernelDefine("WARPS", warps), KernelDefine("STAGES", stages),
        ]
    }

    func kernel(_ device: Device, _ entry: String) -> Kernel? {
        device.kernel(
            "attention_flash_backward.cu", entry, defines, sharedBytes: entry == "attention_delta" ? 0 : sharedBytes)
    }

    /// In how many parts the heads of a group are walked: more blocks, but each part passes its dk and dv on. Only where
    /// there are few blocks of keys.
    func parts(keyBlocks: Int, rows: Int, keyValueHeads: Int, group: Int, multiprocessors: Int) -> Int {
        let items = keyBlocks * keyValueHeads
        guard items <= mostSplit(rows: rows, keyValueHeads: keyValueHeads, multiprocessors: multiprocessors) else {
            return 1
        }
        var parts = 1
        while items * parts < 16 * multiprocessors, group.isMultiple(of: 2 * parts) { parts *= 2 }
        return parts
    }

    /// How many parts and heads (a divisor of their number) run side by side: enough to fill the GPU twice. More would
    /// spread over more of the L2 cache, fewer would wait for each other's turns.
    func together(units: Int, keyBlocks: Int, multiprocessors: Int) -> Int {
        (1...units).first { units.isMultiple(of: $0) && $0 * keyBlocks >= 2 * multiprocessors } ?? units
    }

    /// The most pairs of a block of keys and a head that are walked in parts.
    func mostSplit(rows: Int, keyValueHeads: Int, multiprocessors: Int) -> Int {
        min(4 * multiprocessors, 2 * ceilDiv(rows, keys) * keyValueHeads)
    }
}

/// Statistics turned to [Q, T]; sums of dq that blocks add to in turns, and of dk and dv that parts pass on; tickets and
/// turns.
struct FlashScratch {
    let lse_QT, delta_QT, querySums_QTD, keySums, state: Tensor

    init(_ scratch: inout Scratch, rows: Int, queryHeads: Int, size: Int, keySumCount: Int, stateCount: Int) {
        lse_QT = scratch.take([queryHeads, rows], .float32)
        delta_QT = scratch.take([queryHeads, rows], .float32)
        querySums_QTD = scratch.take([queryHeads, rows, size], .float32)
        keySums = scratch.take([keySumCount], .float32)
        state = scratch.take([stateCount], .int32)
    }
}

extension CUDABackend {
    /// For the largest tile: if every row is a sequence, and keys up to four million rows.
    func reserveFlash(_ scratch: inout Scratch, _ shapes: ScratchShapes) {
        guard shapes.trains, computeDType.isHalf, attentionPath != .plain, shapes.tokens > 0,
            !hasHopperAttention(headSize: shapes.headSize),
            let shape = FlashBackwardShape(headSize: shapes.headSize, sharedBytes: device.architecture.sharedBytes)
        else { return }
        let (rows, heads, keyHeads) = (shapes.tokens, shapes.queryHeads, shapes.keyValueHeads)
        let split =
            heads == keyHeads
            ? 0
            : shape.mostSplit(rows: rows, keyValueHeads: keyHeads, multiprocessors: device.multiprocessorCount)
        _ = FlashScratch(
            &scratch, rows: rows, queryHeads: heads, size: shapes.headSize,
            keySumCount: split * 2 * shape.keys * shapes.headSize,
            stateCount: 1 + rows * heads * shape.warps + (rows + 1 << 15) * keyHeads)
    }

    /// That attention is left to the plain kernels, where the fast ones do not fit the GPU; nil where they do.
    func flashRemark(on shapes: ScratchShapes) -> String? {
        let most = device.architecture.sharedBytes, size = shapes.headSize
        guard computeDType.isHalf, attentionPath != .plain, shapes.queryHeads > 0, !hasHopperAttention(headSize: size),
            cudnnAttention == nil,
            FlashShape(headSize: size, sharedBytes: most) == nil
                || shapes.trains && FlashBackwardShape(headSize: size, sharedBytes: most) == nil
        else { return nil }
        return
            "attention takes the plain kernels, which are slow: the fast ones do not have heads of \(size) on this GPU"
    }

    /// False where there is no such kernel for this head size, dtype and GPU.
    func flashAttention(_ call: AttentionCall) -> Bool {
        let shapes = FlashShape.candidates(headSize: call.size, device.architecture)
        guard call.q_TQD.dtype.isHalf, attentionPath != .plain, !shapes.isEmpty else { return false }
        let head = [KernelDefine("HEAD", call.size)]
        tiles.cut(KernelVariant("attention_flash.cu", head), shapes) { shape in
            let table = attentionTables.table(.queries(shape.queries), call.spans)
            device.launch(
                device.kernel(
                    "attention_flash.cu", "attention_flash", head + shape.defines, sharedBytes: shape.sharedBytes),
                Grid(table.count * call.queryHeads), block: 32 * shape.warps,
                call.inputs + [
                    .tensor(call.o_TQD), .tensor(call.logSumExp_TQ), .address(table.address), .int(call.queryHeads),
                    .int(call.keyValueHeads), .float(call.scale),
                ])
        }
        return true
    }

    func flashAttentionBackward(_ call: AttentionCall, _ gradients: AttentionGradients) -> Bool {
        guard call.q_TQD.dtype.isHalf, attentionPath != .plain,
            let shape = FlashBackwardShape(headSize: call.size, sharedBytes: device.architecture.sharedBytes)
        else { return false }
        let table = attentionTables.table(.keys(shape.keys, queryRows: shape.queries), call.spans)
        let items = table.count * call.keyValueHeads
        let parts = shape.parts(
            keyBlocks: table.count, rows: call.rows, keyValueHeads: call.keyValueHeads, group: call.group,
            multiprocessors: device.multiprocessorCount)
        let together = shape.together(
            units: parts * call.keyValueHeads, keyBlocks: table.count, multiprocessors: device.multiprocessorCount)
        var scratch = scratch()
        let temporary = FlashScratch(
            &scratch, rows: call.rows, queryHeads: call.queryHeads, size: call.size,
            keySumCount: parts > 1 ? items * 2 * shape.keys * call.size : 0,
            stateCount: 1 + table.tiles * call.queryHeads * shape.warps + items)
        flashDelta(call, gradients, shape, temporary)
        device.launch(
            shape.kernel(device, "attention_flash_backward"), Grid(items * parts), block: 32 * shape.warps,
            call.inputs + [
                .tensor(gradients.do_TQD), .tensor(temporary.lse_QT), .tensor(temporary.delta_QT),
                .address(table.address), .tensor(gradients.dq_TQD), .tensor(gradients.dk_UGD),
                .tensor(gradients.dv_UGD), .tensor(temporary.querySums_QTD), .tensor(temporary.keySums),
                .tensor(temporary.state), .int(table.count), .int(parts),
                .int(together), .int(table.tiles),
            ] + call.extents)
        return true
    }

    private func flashDelta(
        _ call: AttentionCall, _ gradients: AttentionGradients, _ shape: FlashBackwardShape, _ temporary: FlashScratch
    ) {
        device.launch(
            shape.kernel(device, "attention_delta"), Grid(ceilDiv(call.rows * call.queryHeads, 8)), block: 256,
            [
                .tensor(call.o_TQD), .tensor(gradients.do_TQD), .tensor(call.logSumExp_TQ), .tensor(temporary.lse_QT),
                .tensor(temporary.delta_QT), .tensor(temporary.state), .int(temporary.state.count), .int(call.rows),
                .int(call.queryHeads),
            ])
    }
}
