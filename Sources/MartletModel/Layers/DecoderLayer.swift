internal import MartletCore

// One decoder layer over one tile of a step.
//
//     middle = x + attention(norm(x));   y = middle + feedForward(norm(middle))

/// A piece of a step: consecutive rows, and what their queries may see.
struct Tile {
    /// The tile's rows in the step, which are also its rows in the key/value buffer.
    var rows: Range<Int>
    var positions_T: Tensor
    var spans: [AttentionSpan]

    var count: Int { rows.count }
    var firstRow: Int { rows.lowerBound }
}

/// What one layer leaves of a tile for its backward pass.
struct LayerSaved {
    var attention: AttentionSaved
    /// The residual stream between the two halves.
    var middle_TH: Tensor
    var feedForward: FeedForwardSaved
    /// Empty where nothing is kept.
    var low: LowProducts
}

struct DecoderLayer {
    let backend: any Backend
    let attention: Attention
    let feedForward: FeedForward
    let epsilon: Float

    /// Overwrites `y_TH`; nil when only `saved` is wanted (to be recomputed before the backward pass). `hasKeys` and
    /// `hasOutput`: keys and values, and attention's output, are there.
    func forward(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, _ rows: KeyValueRows, _ workspace: Workspace,
        into y_TH: Tensor?, saving saved: LayerSaved, hasKeys: Bool = false, hasOutput: Bool = false
    ) {
        let normed_TH = workspace.normed_TH.rows(0..<tile.count), weights = weights.keeping(saved.low)
        backend.rmsNorm(x_TH, weights.inputNorm.weight_H, epsilon: epsilon, into: normed_TH)
        attention.forward(
            normed_TH, weights, tile, rows, workspace, residual_TH: x_TH, into: saved.middle_TH,
            saving: saved.attention, hasKeys: hasKeys, hasOutput: hasOutput)

        backend.rmsNorm(saved.middle_TH, weights.postAttentionNorm.weight_H, epsilon: epsilon, into: normed_TH)
        if let y_TH { backend.set(y_TH, to: saved.middle_TH) }
        feedForward.forward(normed_TH, weights, tile, workspace, adding: y_TH, saving: saved.feedForward)
    }

    /// `dx_TH` holds the gradient of this layer's output and leaves as the gradient of its input: the residual stream.
    func backward(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, _ rows: KeyValueRows, _ gradients: KeyValueRows,
        _ workspace: Workspace, _ saved: LayerSaved, _ auxiliary: RouterAuxiliary?, _ dx_TH: Tensor
    ) {
        let normed_TH = workspace.normed_TH.rows(0..<tile.count)
        let dnormed_TH = workspace.dnormed_TH.rows(0..<tile.count), weights = weights.keeping(saved.low)
        backend.rmsNorm(saved.middle_TH, weights.postAttentionNorm.weight_H, epsilon: epsilon, into: normed_TH)
        feedForward.backward(
            normed_TH, weights, tile, workspace, saved.feedForward, auxiliary, dx_TH, into: dnormed_TH)
        backend.rmsNormBackward(
            saved.middle_TH, weights.postAttentionNorm.weight_H, epsilon: epsilon, dnormed_TH,
            adding: dx_TH, accumulating: weights.postAttentionNorm.dweight_H)

        backend.rmsNorm(x_TH, weights.inputNorm.weight_H, epsilon: epsilon, into: normed_TH)
        attention.backward(
            normed_TH, weights, tile, rows, gradients, workspace, saved.attention, dx_TH, into: dnormed_TH)
        backend.rmsNormBackward(
            x_TH, weights.inputNorm.weight_H, epsilon: epsilon, dnormed_TH,
            adding: dx_TH, accumulating: weights.inputNorm.dweight_H)
    }
}
