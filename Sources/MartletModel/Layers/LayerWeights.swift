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

/// The adapters' skinny products of a tile, kept for the backward pass, by the kind of weight.
typealias LowProducts = [Weight.Kind: Tensor]

extension LayerWeights {
    /// The same weights, whose adapters keep their products in `low`.
    func keeping(_ low: LowProducts) -> LayerWeights {
        guard !low.isEmpty else { return self }
        var copy = self
        copy.query.adapter?.low = low[.query]
        copy.key.adapter?.low = low[.key]
        copy.value.adapter?.low = low[.value]
        copy.output.adapter?.low = low[.output]
        switch feedForward {
        case .dense(var gate, var up, var down):
            gate.adapter?.low = low[.gate]
            up.adapter?.low = low[.up]
            down.adapter?.low = low[.down]
            copy.feedForward = .dense(gate: gate, up: up, down: down)
        case .sparse(let router, var experts):
            experts.gateUpAdapter?.low = low[.expertsGateUp]
            experts.downAdapter?.low = low[.expertsDown]
            copy.feedForward = .sparse(router: router, experts: experts)
        }
        return copy
    }
}

/// An RMSNorm's weight, with its gradient if it is trained.
struct Norm {
    var weight_H: Tensor
    var dweight_H: Tensor?
}
