internal import MartletCore

/// What layers that do not keep their activations have instead: memory of one tile; or, where some tiles' second halves wait in
/// host memory, of several in turns.
struct TileMemory {
    /// The bytes of a tile's `FeedForwardActivations`, by turn.
    let turns: LayerTensors
    let byteCount: Int
    /// By whether the layer is sparse.
    let activations: [Bool: SavedActivations]

    /// Where tiles leave: one that is computed with, one on its way, and one more, since early tiles of a sequence are done sooner
    /// than the bus is (simulated at 32,768 tokens: with two the forward pass waits 60 ms of 1100, with three not at all).
    static let slotCount = 3

    init(
        _ c: ModelConfiguration, _ settings: ModelSettings, _ plan: ExecutionPlan, rank: Int, _ backend: any Backend,
        in memory: Memory
    ) {
        let T = plan.tileTokens, dtype = backend.computeDType, leaves = plan.tilesOut > 0
        let tableCount = c.routingTableCount(plan, backend)
        func halves(_ isSparse: Bool, in arena: Arena) -> FeedForwardActivations {
            FeedForwardActivations(
                c, isSparse: isSparse, rows: T, tileTokens: T, rank: rank, tableCount: tableCount, in: arena,
                for: .workspace, dtype)
        }
        let kinds = Set(c.isSparse.dropLast(plan.keptLayers)).sorted { $0 && !$1 }
        byteCount =
            kinds.map { isSparse in
                let measure = Arena.measuring()
                _ = halves(isSparse, in: measure)
                return measure.byteCount
            }.max() ?? 0
        let slotCount = leaves ? TileMemory.slotCount : 1
        // The last ones stay where they are until the backward pass begins.
        let turns = LayerTensors(
            [([byteCount], .uint8)], slots: slotCount, homes: plan.tilesOut,
            of: max(plan.tilesOut, plan.tileCount(layers: c.layerCount) - slotCount),
            for: leaves ? .kept : .workspace, backend, in: memory)
        self.turns = turns
        activations = Dictionary(
            uniqueKeysWithValues: kinds.map { isSparse in
                let feedForward = (0..<slotCount).map { turn in
                    halves(isSparse, in: Arena(viewing: turns[turn][0], isMeasuring: memory.device.isMeasuring))
                }
                return (
                    isSparse,
                    SavedActivations(
                        tileOf: c, plan: plan, keyRows: settings.trains ? plan.stepTokens : T, rank: rank, feedForward,
                        in: memory.device, dtype)
                )
            })
    }

    /// The forward pass is done with a tile; `wanted`: and a backward pass will come.
    func finishWriting(_ turn: Int, wanted: Bool) { turns.finishWriting(turn, rows: 0..<(wanted ? byteCount : 0)) }

    /// Brings the tile before `turn` back, of the same layer or the one before.
    func fetch(before turn: Int) { turns.fetch(turn - 1, rows: 0..<byteCount) }
}
