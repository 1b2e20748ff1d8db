internal import MartletCore

/// Memory that every layer and every tile uses in turn.
struct Workspace {
    var normed_TH: Tensor
    var query_TQD: Tensor
    /// For sparse layers.
    var logits_TE: Tensor
    /// For dense layers.
    var inner_TF: Tensor

    // The rest is for the backward pass only (empty without one).
    var dnormed_TH: Tensor
    var doutput_TQD: Tensor
    var dquery_TQD: Tensor
    var dkey_TGD: Tensor
    var dinner_TF: Tensor
    var dweight_TK: Tensor
    /// The load-balancing loss's gradient of each expert's probability.
    var dprobability_E: Tensor

    init(_ configuration: ModelConfiguration, tile T: Int, trains: Bool, in arena: Arena, _ dtype: DType) {
        let c = configuration
        let experts = c.experts
        let denseInner = c.isSparse.allSatisfy { $0 } ? 0 : c.denseInnerSize
        func carve(_ shape: Shape, _ type: DType = dtype) -> Tensor { arena.carve(shape, type, for: .workspace) }
        func carveBackward(_ shape: Shape, _ type: DType = dtype) -> Tensor {
            trains ? carve(shape, type) : Tensor(address: 0, dtype: type, shape: [0])
        }
        normed_TH = carve([T, c.hiddenSize])
        query_TQD = carve([T, c.queryHeadCount, c.headSize])
        logits_TE = carve([T, experts?.expertCount ?? 0])
        inner_TF = carve([T, denseInner])
        dnormed_TH = carveBackward([T, c.hiddenSize])
        doutput_TQD = carveBackward([T, c.queryHeadCount, c.headSize])
        dquery_TQD = carveBackward([T, c.queryHeadCount, c.headSize])
        dkey_TGD = carveBackward([T, c.keyValueHeadCount, c.headSize])
        dinner_TF = carveBackward([T, denseInner])
        dweight_TK = carveBackward([T, experts?.expertsPerToken ?? 0], .float32)
        dprobability_E = carveBackward([experts?.expertCount ?? 0], .float32)
    }
}
