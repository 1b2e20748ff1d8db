internal import MartletCore

/// Memory for what a layer leaves for its backward pass: of a whole step (a layer that keeps), or of one tile (shared by
/// all layers that recompute).
struct SavedActivations {
    private let query_TQD: Tensor
    private let key_TGD: Tensor
    /// The values of the whole step; only a layer that keeps has its own.
    let value_TGD: Tensor?
    private let output: AttentionOutput
    private let middle_TH: Tensor
    /// What could be made again by reading and writing once (`ExecutionPlan.keepsEverything`).
    private let everything: (normed: NormedSaved, rotated_TQD: Tensor, rotatedKey_TGD: Tensor)?
    private let dense: (gate_TF: Tensor, up_TF: Tensor)?
    /// The routing's offsets stand elsewhere.
    private let sparse: (routing: Routing, gateUp_RF: Tensor)?
    private let low: LowProducts
    private let tileTokens: Int
    private let keeps: Bool

    /// `rows` tokens; `keeps` says whether tiles have rows of their own here. `keyRows` lets the unrotated keys of a
    /// whole step stand beside one tile of the rest (they are needed again when the tile's backward pass comes).
    /// `rank` of the adapters whose products are kept; 0: none. `tableCount`: of a tile's `Routing.tables`.
    init(
        _ configuration: ModelConfiguration, isSparse: Bool, plan: ExecutionPlan, keeps: Bool, keyRows: Int,
        rank: Int = 0, tableCount: Int, in arena: Arena, _ dtype: DType
    ) {
        let c = configuration
        let T = keeps ? plan.stepTokens : plan.tileTokens
        let row: Arena.Row = keeps ? .kept : .workspace
        func carve(_ shape: Shape, _ type: DType = dtype) -> Tensor { arena.carve(shape, type, for: row) }
        self.keeps = keeps
        tileTokens = plan.tileTokens
        query_TQD = carve([T, c.queryHeadCount, c.headSize])
        key_TGD = carve([keyRows, c.keyValueHeadCount, c.headSize])
        value_TGD = keeps ? carve([T, c.keyValueHeadCount, c.headSize]) : nil
        output = AttentionOutput(
            output_TQD: carve([T, c.queryHeadCount, c.headSize]), logSumExp_TQ: carve([T, c.queryHeadCount], .float32))
        middle_TH = carve([T, c.hiddenSize])
        everything =
            keeps && plan.keepsEverything
            ? (
                NormedSaved(first_TH: carve([T, c.hiddenSize]), second_TH: carve([T, c.hiddenSize])),
                carve([T, c.queryHeadCount, c.headSize]), carve([T, c.keyValueHeadCount, c.headSize])
            ) : nil
        if isSparse, let e = c.experts {
            let E = e.expertCount, K = e.expertsPerToken
            let tiles = keeps ? plan.tileCount : 1
            let routing = Routing(
                probability_TE: carve([T, E], .float32), logSumExp_T: carve([T], .float32),
                expert_TK: carve([T, K], .int32), weight_TK: carve([T, K], .float32),
                order_R: carve([T * K], .int32), offset_E1: Tensor(address: 0, dtype: .int32, shape: [0]),
                tables: tableCount == 0 ? nil : carve([tiles, tableCount], .int32))
            sparse = (routing, carve([T * K, 2 * e.innerSize]))
            dense = nil
        } else {
            dense = (carve([T, c.denseInnerSize]), carve([T, c.denseInnerSize]))
            sparse = nil
        }
        let routed: [Weight.Kind] = isSparse ? [.expertsGateUp, .expertsDown] : []
        let projections: [Weight.Kind] = [.query, .key, .value, .output] + (isSparse ? [] : [.gate, .up, .down])
        var low: LowProducts = [:]
        if keeps, rank > 0 {
            for kind in projections { low[kind] = carve([T, rank]) }
            for kind in routed { low[kind] = carve([T * (c.experts?.expertsPerToken ?? 0), rank]) }
        }
        self.low = low
    }

    /// The rotated keys of the whole step, where they are kept.
    var rotatedKey_TGD: Tensor? { everything?.rotatedKey_TGD }

    /// The part that belongs to `tile`, whose routing's offsets stand in `offset_E1`.
    func saved(for tile: Tile, offset_E1: Tensor?) -> LayerSaved {
        let rows = keeps ? tile.rows : 0..<tile.count
        let keyRows = key_TGD.shape[0] >= tile.rows.upperBound ? tile.rows : rows
        let attention = AttentionSaved(
            query_TQD: query_TQD.rows(rows), key_TGD: key_TGD.rows(keyRows),
            rotated_TQD: everything?.rotated_TQD.rows(rows), output: output.rows(rows))
        let K = sparse?.routing.expert_TK.shape[1] ?? 1
        let routed = rows.lowerBound * K..<rows.upperBound * K
        let low = Dictionary(
            uniqueKeysWithValues: self.low.map { kind, tensor in
                (kind, tensor.rows(kind == .expertsGateUp || kind == .expertsDown ? routed : rows))
            })
        return LayerSaved(
            attention: attention, middle_TH: middle_TH.rows(rows), normed: everything?.normed.rows(rows),
            feedForward: feedForward(rows, offset_E1), low: low)
    }

    private func feedForward(_ rows: Range<Int>, _ offset_E1: Tensor?) -> FeedForwardSaved {
        guard let (routing, gateUp_RF) = sparse, let offset_E1 else {
            guard let dense else { preconditionFailure("neither dense nor sparse") }
            return .dense(gate_TF: dense.gate_TF.rows(rows), up_TF: dense.up_TF.rows(rows))
        }
        let K = routing.expert_TK.shape[1]
        let routed = rows.lowerBound * K..<rows.upperBound * K
        let tileRouting = Routing(
            probability_TE: routing.probability_TE.rows(rows), logSumExp_T: routing.logSumExp_T.rows(rows),
            expert_TK: routing.expert_TK.rows(rows), weight_TK: routing.weight_TK.rows(rows),
            order_R: routing.order_R.rows(routed), offset_E1: offset_E1,
            tables: routing.tables?[rows.lowerBound / tileTokens])
        return .sparse(routing: tileRouting, gateUp_RF: gateUp_RF.rows(routed))
    }
}
