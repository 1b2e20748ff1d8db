internal import MartletCore

// The second half of a decoder layer: a dense SwiGLU MLP, or a router and its experts.
// T rows of the tile, H hidden, F inner size, E experts, K experts a token, R = T x K routed rows.
//
//     dense:   y = residual + down(silu(gate x) * up x)
//     sparse:  y = residual + sum over the K chosen experts of weight_k * expert_k(x)

/// What a tile of the feed-forward leaves for its backward pass.
enum FeedForwardSaved {
    case dense(gate_TF: Tensor, up_TF: Tensor)
    case sparse(routing: Routing, gateUp_RF: Tensor)
}

struct FeedForward {
    let backend: any Backend
    let options: RouterOptions

    /// With `y_TH` nil only what the backward pass needs is made (the down projection is skipped).
    func forward(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, _ workspace: Workspace, residual_TH: Tensor,
        into y_TH: Tensor?, saving saved: FeedForwardSaved
    ) {
        let first = tile.firstRow
        switch (weights.feedForward, saved) {
        case (.dense(let gate, let up, let down), .dense(let gate_TF, let up_TF)):
            backend.linear(x_TH, [gate, up], firstRow: first, into: [gate_TF, up_TF])
            guard let y_TH else { return }
            let activated_TF = workspace.inner_TF.rows(0..<tile.count)
            backend.swiGLU(gate_TF, up_TF, into: activated_TF)
            backend.linear(activated_TF, down, firstRow: first, into: y_TH, residual_TO: residual_TH)
        case (.sparse(let router, let experts), .sparse(let routing, let gateUp_RF)):
            let logits_TE = workspace.logits_TE.rows(0..<tile.count)
            backend.linear(x_TH, router, firstRow: first, into: logits_TE, adds: false)
            backend.route(logits_TE, options, into: routing)
            backend.experts(
                x_TH, routing, experts, firstRow: first, into: gateUp_RF, y_TH, residual_TH: residual_TH)
        default: preconditionFailure("a layer's saved activations do not fit its weights")
        }
    }

    /// Overwrites `dx_TH`. What was saved is used up.
    func backward(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, _ workspace: Workspace, _ saved: FeedForwardSaved,
        _ auxiliary: RouterAuxiliary?, _ dy_TH: Tensor, into dx_TH: Tensor
    ) {
        let first = tile.firstRow, gradients = tile.accumulation
        switch (weights.feedForward, saved) {
        case (.dense(let gate, let up, let down), .dense(let gate_TF, let up_TF)):
            let activated_TF = workspace.inner_TF.rows(0..<tile.count)
            let dactivated_TF = workspace.dinner_TF.rows(0..<tile.count)
            backend.swiGLU(gate_TF, up_TF, into: activated_TF)
            backend.linearBackward(
                activated_TF, down, firstRow: first, dy_TH, into: dactivated_TF, adds: false, gradients: gradients)
            backend.swiGLUBackward(gate_TF, up_TF, dactivated_TF, into: gate_TF, up_TF)
            backend.linearBackward(
                x_TH, [up, gate], firstRow: first, [up_TF, gate_TF], into: dx_TH, gradients: gradients)
        case (.sparse(let router, let experts), .sparse(let routing, let gateUp_RF)):
            let logits_TE = workspace.logits_TE.rows(0..<tile.count)
            let dweight_TK = workspace.dweight_TK.rows(0..<tile.count)
            backend.expertsBackward(
                x_TH, routing, experts, firstRow: first, gateUp_RF, dy_TH, into: dx_TH, dweight_TK, gradients: gradients
            )
            backend.routeBackward(routing, options, dweight_TK, auxiliary, into: logits_TE)
            backend.linearBackward(
                x_TH, router, firstRow: first, logits_TE, into: dx_TH, adds: true, gradients: gradients)
        default: preconditionFailure("a layer's saved activations do not fit its weights")
        }
    }
}
