internal import MartletCore

/// The weights of one decoder layer, ready to compute with: frozen ones decoded, trained ones where they live.
struct LayerWeights {
    var inputNorm: Norm
    var query: Linear
    var key: Linear
    var value: Linear
    var output: Linear
    var queryNorm: HeadNorm
    var keyNorm: HeadNorm
    var postAttentionNorm: Norm
    var feedForward: FeedForward

    enum FeedForward {
        case dense(gate: Linear, up: Linear, down: Linear)
        case sparse(router: Linear, experts: Experts)
    }
}

/// An RMSNorm's weight, with its gradient if it is trained.
struct Norm {
    var weight_H: Tensor
    var dweight_H: Tensor?
}
