package import MartletCore

/// Lays an op's temporaries out in the scratch memory, front to back, 256-byte aligned.
///
/// Every op with temporaries has one struct that takes its pieces from a `Scratch`. `reserveScratch` makes the same
/// structs, for the largest shapes, from a measuring `Scratch`: so the size is the formula of the layout.
struct Scratch {
    private let base: UInt
    private let capacity: Int
    private(set) var byteCount = 0

    /// Over reserved memory; with nil, nothing can be taken.
    init(_ memory: Tensor?) {
        base = memory?.address ?? 0
        capacity = memory?.byteCount ?? 0
    }

    private init() {
        base = 0
        capacity = .max
    }

    /// A scratch that only counts; its pieces must not be touched.
    static func measuring() -> Scratch { Scratch() }

    mutating func take(_ shape: Shape, _ dtype: DType) -> Tensor {
        let size = roundUp(shape.count * dtype.byteCount, to: 256)
        precondition(size <= capacity - byteCount, "an op's shapes exceed those given to reserveScratch")
        defer { byteCount += size }
        return Tensor(address: base + UInt(byteCount), dtype: dtype, shape: shape)
    }
}

extension CUDABackend {
    package func reserveScratch(for shapes: ScratchShapes, in arena: Arena) {
        let memory = arena.carve([scratchByteCount(for: shapes)], .uint8, for: .workspace)
        if !arena.isMeasuring { (scratchMemory, room) = (memory, shapes.room) }
        blas.reserveWorkspace(in: arena)
        tables.reserve(in: arena)
        attentionTables.reserve(tokens: shapes.tokens, in: arena)

        cudnnAttention(for: shapes)?.reserve(for: shapes, in: arena)
        if !arena.isMeasuring { tuneTiles(for: shapes) }
    }

    /// The most that any one op takes; ops do not share scratch across calls.
    private func scratchByteCount(for shapes: ScratchShapes) -> Int {
        let s = shapes
        let heads = max(shapes.queryHeads, shapes.keyValueHeads)
        let layouts: [(inout Scratch) -> Void] = [
            { _ = FiniteScratch(&$0) },
            {
                // In float16 a trained router's weight is float32, and is converted.
                _ = LinearScratch(
                    &$0, rows: shapes.tokens, width: max(shapes.hidden, shapes.widest), rank: shapes.rank,
                    drops: shapes.dropsOut, convertedCount: shapes.experts * shapes.hidden, self.computeDType)
            },
            {
                guard self.device.capability == 90, self.computeDType == .bfloat16 else { return }
                _ = ProjectionScratch(
                    &$0, rows: shapes.tokens, width: max(shapes.hidden, shapes.widest), rank: shapes.rank)
            },
            { self.reserveExperts(&$0, shapes) },
            { self.reserveHopperBackward(&$0, shapes) },
            { self.reserveFlash(&$0, shapes) },
            { _ = NormScratch(&$0, rows: shapes.tokens, width: shapes.hidden) },
            { self.cudnnAttention(for: shapes)?.layOut(&$0, shapes) },
            { _ = RotateScratch(&$0, tokens: shapes.tokens, heads: heads, size: shapes.headSize) },
            { _ = RouterScratch(&$0, rows: s.tokens * s.expertsPerToken, experts: s.experts) },
            {
                _ = CrossEntropyScratch(
                    &$0, rows: s.tokens, vocabulary: s.vocabulary, room: s.room, self.computeDType)
            },
        ]
        return layouts.reduce(1 << 20) { most, layout in
            var scratch = Scratch.measuring()
            layout(&scratch)
            return max(most, scratch.byteCount)
        }
    }
}
