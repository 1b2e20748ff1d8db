internal import MartletCore

/// Memory for what a layer leaves for its backward pass: of a whole step (a layer that keeps), or of one tile (shared by
/// all layers that do not).
struct SavedActivations {
    private let query_TQD: Tensor
    private let key_TGD: Tensor
    /// The values of the whole step; only a layer that keeps has its own.
    let value_TGD: Tensor?
    /// nil where every layer has its own elsewhere.
    private let output: AttentionOutput?
    /// What could be made again by reading and writing once (`ExecutionPlan.keepsEverything`).
    private let everything: (normed: NormedSaved, rotated_TQD: Tensor, rotatedKey_TGD: Tensor)?
    /// One, or several in turns.
    private let feedForward: [FeedForwardActivations]
    private let low: LowProducts
    private let keeps: Bool

    /// Of a layer that keeps. `rank` of the adapters whose products are kept, 0: none; `tableCount` of a tile's `Routing.tables`.
    init(
        keeping c: ModelConfiguration, isSparse: Bool, _ plan: ExecutionPlan, rank: Int, tableCount: Int,
        in arena: Arena, _ dtype: DType
    ) {
        let T = plan.stepTokens
        func carve(_ shape: Shape) -> Tensor { arena.carve(shape, dtype, for: .kept) }
        keeps = true
        query_TQD = carve([T, c.queryHeadCount, c.headSize])
        key_TGD = carve([T, c.keyValueHeadCount, c.headSize])
        value_TGD = carve([T, c.keyValueHeadCount, c.headSize])
        output = AttentionOutput(c, rows: T, in: arena, for: .kept, dtype)
        everything =
            plan.keepsEverything
            ? (
                NormedSaved(first_TH: carve([T, c.hiddenSize]), second_TH: carve([T, c.hiddenSize])),
                carve([T, c.queryHeadCount, c.headSize]), carve([T, c.keyValueHeadCount, c.headSize])
            ) : nil
        feedForward = [
            FeedForwardActivations(
                c, isSparse: isSparse, rows: T, tileTokens: plan.tileTokens, rank: rank, tableCount: tableCount,
                in: arena, for: .kept, dtype)
        ]
        low = rank > 0 ? [.query: carve([T, rank]), .key: carve([T, rank]), .value: carve([T, rank])] : [:]
    }

    /// Of one tile, and the unrotated keys of `keyRows` rows: of a whole step where they are needed again when a tile's backward
    /// pass comes.
    init(
        tileOf c: ModelConfiguration, plan: ExecutionPlan, keyRows: Int, rank: Int,
        _ feedForward: [FeedForwardActivations], in arena: Arena, _ dtype: DType
    ) {
        let T = plan.tileTokens
        func carve(_ shape: Shape) -> Tensor { arena.carve(shape, dtype, for: .workspace) }
        keeps = false
        query_TQD = carve([T, c.queryHeadCount, c.headSize])
        key_TGD = carve([keyRows, c.keyValueHeadCount, c.headSize])
        output = plan.outputsOut ? nil : AttentionOutput(c, rows: T, in: arena, for: .workspace, dtype)
        (value_TGD, everything) = (nil, nil)
        self.feedForward = feedForward
        low =
            rank > 0
            ? [.query: carve([T, rank]), .key: carve([keyRows, rank]), .value: carve([keyRows, rank])] : [:]
    }

    /// The rotated keys of the whole step, where they are kept.
    var rotatedKey_TGD: Tensor? { everything?.rotatedKey_TGD }

    /// The part that belongs to `tile`, which has turn `turn`; `output` where attention's is elsewhere, as a routing's offsets are.
    func saved(for tile: Tile, turn: Int, output elsewhere: AttentionOutput?, offset_E1: Tensor?) -> LayerSaved {
        let rows = keeps ? tile.rows : 0..<tile.count
        let keyRows = key_TGD.shape[0] >= tile.rows.upperBound ? tile.rows : rows
        guard let output = elsewhere ?? output?.rows(rows) else {
            preconditionFailure("attention's output has no memory")
        }
        let attention = AttentionSaved(
            query_TQD: query_TQD.rows(rows), key_TGD: key_TGD.rows(keyRows),
            rotated_TQD: everything?.rotated_TQD.rows(rows), output: output)
        let (middle_TH, feedForward, rest) = feedForward[turn % feedForward.count].saved(rows, offset_E1)
        var low = rest
        for (kind, tensor) in self.low { low[kind] = tensor.rows(kind == .query ? rows : keyRows) }
        return LayerSaved(
            attention: attention, middle_TH: middle_TH, normed: everything?.normed.rows(rows),
            feedForward: feedForward, low: low)
    }
}

extension AttentionOutput {
    init(_ c: ModelConfiguration, rows T: Int, in arena: Arena, for row: Arena.Row, _ dtype: DType) {
        output_TQD = arena.carve([T, c.queryHeadCount, c.headSize], dtype, for: row)
        logSumExp_TQ = arena.carve([T, c.queryHeadCount], for: row)
    }
}
