import MartletCore
import Testing

@testable import MartletCUDA

/// The temporaries of every op: the size that is measured is the size that is used, and a smaller call needs no more.
@Suite struct ScratchTests {
    /// The layouts of ops over a number of rows, at awkward sizes.
    private static let layouts: [(name: String, make: @Sendable (inout Scratch, Int) -> Any)] = [
        ("finite", { scratch, _ in FiniteScratch(&scratch) }),
        (
            "linear",
            { LinearScratch(&$0, rows: $1, width: 13, rank: 3, drops: true, convertedCount: 65, .bfloat16) }
        ),
        ("norm", { NormScratch(&$0, rows: $1, width: 49) }),
        ("rotate", { RotateScratch(&$0, tokens: $1, heads: 3, size: 10) }),
        ("router", { RouterScratch(&$0, rows: 2 * $1, experts: 5) }),
        ("loss", { CrossEntropyScratch(&$0, rows: $1, vocabulary: 151_937, room: .usual, .float32) }),
        ("grouped experts", { GroupedScratch(&$0, size(rows: $1), .float16) }),
        ("experts in a loop", { LoopScratch(&$0, size(rows: $1), .bfloat16, dropsOut: true) }),
        (
            "flash",
            { FlashScratch(&$0, rows: $1, queryHeads: 4, size: 64, keySumCount: 128 * $1, stateCount: 1 + 32 * $1) }
        ),
        ("Hopper backward", { HopperBackwardScratch(&$0, rows: $1, queryHeads: 8, tiles: $1, shares: $1 / 64) }),
        (
            "cuDNN",
            {
                CuDNNAttentionScratch(
                    &$0, runs: 2, keyRows: $1, keyWidth: 48, queryRows: $1, queryWidth: 96, roomByteCount: 100 * $1)
            }
        ),
    ]

    private static func size(rows: Int) -> ExpertsSize {
        var shapes = ScratchShapes()
        (shapes.tokens, shapes.hidden, shapes.expertInner) = (rows, 40, 24)
        (shapes.experts, shapes.expertsPerToken, shapes.rank) = (5, 2, 16)
        return ExpertsSize(shapes)
    }

    @Test(arguments: layouts.indices)
    func measuredIsUsed(_ index: Int) {
        let (name, make) = ScratchTests.layouts[index], address: UInt = 1 << 40
        var most = 0
        for rows in [0, 1, 7, 8, 9, 33, 257, 5000] {
            var measuring = Scratch.measuring()
            _ = make(&measuring, rows)
            let size = measuring.byteCount
            #expect(size >= most, "\(name), \(rows) rows: less takes more")
            most = size
            // Memory of just that size, which nobody touches.
            var scratch = Scratch(Tensor(address: address, dtype: .uint8, shape: [size]))
            let layout = make(&scratch, rows)
            #expect(scratch.byteCount == size, "\(name), \(rows) rows")
            var end = address
            for piece in Mirror(reflecting: layout).children.compactMap({ $0.value as? Tensor }) {
                #expect(piece.address % 256 == 0 && piece.address >= end, "\(name), \(rows) rows: pieces overlap")
                end = piece.address + UInt(piece.byteCount)
            }
            #expect(end <= address + UInt(size), "\(name), \(rows) rows: a piece lies outside")
            #expect(rows == 0 || end > address, "\(name): a layout without pieces")
        }
    }
}
