internal import MartletCore

/// Memory for what the second half of a layer leaves for its backward pass, and for what enters it: of a whole step, or of one
/// tile.
struct FeedForwardActivations {
    private let middle_TH: Tensor
    private let dense: (gate_TF: Tensor, up_TF: Tensor)?
    /// The routing's offsets are elsewhere.
    private let sparse: (routing: Routing, gateUp_RF: Tensor)?
    /// Also of the projection that makes what enters.
    private let low: LowProducts
    private let tileTokens: Int

    /// For `rows` tokens in tiles of `tileTokens`; `rank` of the adapters whose products are kept, 0: none; `tableCount` of a tile's
    /// `Routing.tables`.
    init(
        _ c: ModelConfiguration, isSparse: Bool, rows T: Int, tileTokens: Int, rank: Int, tableCount: Int,
        in arena: Arena, for row: Arena.Row, _ dtype: DType
    ) {
        func carve(_ shape: Shape, _ type: DType = dtype) -> Tensor { arena.carve(shape, type, for: row) }
        self.tileTokens = tileTokens
        middle_TH = carve([T, c.hiddenSize])
        var low: LowProducts = [:]
        if rank > 0 { low[.output] = carve([T, rank]) }
        if isSparse, let e = c.experts {
            let E = e.expertCount, K = e.expertsPerToken
            let routing = Routing(
                probability_TE: carve([T, E], .float32), logSumExp_T: carve([T], .float32),
                expert_TK: carve([T, K], .int32), weight_TK: carve([T, K], .float32),
                order_R: carve([T * K], .int32), offset_E1: Tensor(address: 0, dtype: .int32, shape: [0]),
                tables: tableCount == 0 ? nil : carve([ceilDiv(T, tileTokens), tableCount], .int32))
            sparse = (routing, carve([T * K, 2 * e.innerSize]))
            dense = nil
            if rank > 0 { low[.expertsGateUp] = carve([T * K, rank]) }
        } else {
            dense = (carve([T, c.denseInnerSize]), carve([T, c.denseInnerSize]))
            sparse = nil
            if rank > 0 { for kind in [Weight.Kind.gate, .up] { low[kind] = carve([T, rank]) } }
        }
        self.low = low
    }

    /// The part of some rows, which are a tile's, whose routing's offsets stand in `offset_E1`.
    func saved(
        _ rows: Range<Int>, _ offset_E1: Tensor?
    ) -> (middle_TH: Tensor, feedForward: FeedForwardSaved, low: LowProducts) {
        let K = sparse?.routing.expert_TK.shape[1] ?? 1
        let routed = rows.lowerBound * K..<rows.upperBound * K
        let low = Dictionary(
            uniqueKeysWithValues: self.low.map { kind, tensor in
                (kind, tensor.rows(kind == .expertsGateUp ? routed : rows))
            })
        return (middle_TH.rows(rows), feedForward(rows, routed, offset_E1), low)
    }

    private func feedForward(_ rows: Range<Int>, _ routed: Range<Int>, _ offset_E1: Tensor?) -> FeedForwardSaved {
        guard let (routing, gateUp_RF) = sparse, let offset_E1 else {
            guard let dense else { preconditionFailure("neither dense nor sparse") }
            return .dense(gate_TF: dense.gate_TF.rows(rows), up_TF: dense.up_TF.rows(rows))
        }
        let tileRouting = Routing(
            probability_TE: routing.probability_TE.rows(rows), logSumExp_T: routing.logSumExp_T.rows(rows),
            expert_TK: routing.expert_TK.rows(rows), weight_TK: routing.weight_TK.rows(rows),
            order_R: routing.order_R.rows(routed), offset_E1: offset_E1,
            tables: routing.tables?[rows.lowerBound / tileTokens])
        return .sparse(routing: tileRouting, gateUp_RF: gateUp_RF.rows(routed))
    }
}

extension ModelConfiguration {
    /// Of a tile's `Routing.tables`.
    func routingTableCount(_ plan: ExecutionPlan, _ backend: any Backend) -> Int {
        experts.map {
            backend.routingTableCount(rows: plan.tileTokens * $0.expertsPerToken, experts: $0.expertCount)
        } ?? 0
    }
}
