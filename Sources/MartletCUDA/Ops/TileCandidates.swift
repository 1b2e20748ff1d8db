internal import MartletCore

// The candidates of every kernel that has a choice, the usual tile first. All give the same bytes: each sum runs along K, rows
// or keys in one order, whatever the tile. What the usual ones are measured against: docs/lab-log.md.

/// How the portable grouped products are cut.
struct PortableTile: Tile {
    var columns = 128
    let step: Int
    let stages: Int

    /// dact's sums of a row are over so many columns, whatever the tile.
    static let partialColumns = 128

    /// On an H200, 128 x 32 x 5 is 5 % faster for dact and 256 x 64 x 4 for few rows an expert.
    static func candidates(_ architecture: Architecture) -> [PortableTile] {
        switch architecture.sharedBytes {
        // Two blocks a multiprocessor take 96 KB each.
        case (200 << 10)...:
            [
                PortableTile(step: 64, stages: 3), PortableTile(step: 32, stages: 5),
                PortableTile(columns: 256, step: 64, stages: 4),
            ]
        // Two of 64 or 80 KB, or one.
        case (128 << 10)...:
            [
                PortableTile(step: 32, stages: 4), PortableTile(step: 32, stages: 5), PortableTile(step: 64, stages: 3),
                PortableTile(columns: 256, step: 32, stages: 6), PortableTile(columns: 256, step: 64, stages: 3),
            ]
        // Turing: its copies are not in the background.
        case ..<(96 << 10): [PortableTile(step: 32, stages: 2)]
        // Two of 48 KB, or one.
        default:
            [
                PortableTile(step: 32, stages: 3), PortableTile(step: 64, stages: 3),
                PortableTile(columns: 256, step: 32, stages: 3), PortableTile(columns: 256, step: 32, stages: 4),
            ]
        }
    }

    var sharedBytes: Int { stages * step * 2 * (128 + columns) }
    var defines: [KernelDefine] {
        [KernelDefine("TILE_COLUMNS", columns), KernelDefine("STEP", step), KernelDefine("STAGES", stages)]
    }
}

/// The adapters' skinny products: blocks a multiprocessor has room for. Fewer have more loads under way each.
struct ProjectTile: Tile {
    let blocks: Int

    static let candidates = [2, 4, 3].map(ProjectTile.init)

    var defines: [KernelDefine] { [KernelDefine("BLOCKS", blocks)] }
}

/// The adapters' gradients: pieces of 64 rows in shared memory.
struct GradientTile: Tile {
    let depth: Int

    static func candidates(rank: Int, _ architecture: Architecture) -> [GradientTile] {
        [2, 3, 4].map(GradientTile.init).filter { $0.sharedBytes(rank: rank) <= architecture.sharedBytes }
    }

    func sharedBytes(rank: Int) -> Int { depth * (64 * 256 + 64 * rank * 2) }
    var defines: [KernelDefine] { [KernelDefine("DEPTH", depth)] }
}

extension FlashShape {
    /// Empty where there is none for this head size.
    static func candidates(headSize: Int, _ architecture: Architecture) -> [FlashShape] {
        guard let usual = FlashShape(headSize: headSize, sharedBytes: architecture.sharedBytes) else { return [] }
        let others =
            switch headSize {
            case 64: [(4, 16, 4), (8, 16, 2)]
            case 128: [(4, 16, 2), (8, 16, 1), (8, 32, 1)]
            default: [(4, 16, 2), (4, 16, 1), (8, 16, 1)]
            }
        return [usual]
            + others.map { (warps, warpRows, blocks) in
                var shape = usual
                (shape.warps, shape.warpRows, shape.blocks) = (warps, warpRows, blocks)
                return shape
            }.filter { $0 != usual && $0.fits(architecture) }
    }

    /// From Ampere on a multiprocessor has 1 KiB more than a block may have, and takes 1 KiB for each.
    func fits(_ architecture: Architecture) -> Bool {
        let taken = architecture.capability >= 80 ? 1 << 10 : 0
        return blocks * (sharedBytes + taken) <= architecture.sharedBytes + taken
    }
}
