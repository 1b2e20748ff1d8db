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
    /// Tiles come back in reverse order: the step's last one is the first to leave gradients.
    var accumulation = Accumulation.later

    var count: Int { rows.count }
    var firstRow: Int { rows.lowerBound }
}

/// What one layer leaves of a tile for its backward pass.
struct LayerSaved {
    var attention: AttentionSaved
    /// The residual stream between the two halves.
    var middle_TH: Tensor
    /// Where there is room.
    var normed: NormedSaved?
    var feedForward: FeedForwardSaved
    /// Empty where nothing is kept.
    var low: LowProducts
}

/// The normed inputs of a layer's halves.
struct NormedSaved {
    var first_TH: Tensor
    var second_TH: Tensor

    func rows(_ rows: Range<Int>) -> NormedSaved {
        NormedSaved(first_TH: first_TH.rows(rows), second_TH: second_TH.rows(rows))
    }
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
        let shared_TH = workspace.normed_TH.rows(0..<tile.count), weights = weights.keeping(saved.low)
        let first_TH = saved.normed?.first_TH ?? shared_TH, second_TH = saved.normed?.second_TH ?? shared_TH
        backend.rmsNorm(x_TH, weights.inputNorm.weight_H, epsilon: epsilon, into: first_TH)
        attention.forward(
            first_TH, weights, tile, rows, workspace, residual_TH: x_TH, into: saved.middle_TH,
            saving: saved.attention, hasKeys: hasKeys, hasOutput: hasOutput)

        backend.rmsNorm(saved.middle_TH, weights.postAttentionNorm.weight_H, epsilon: epsilon, into: second_TH)
        feedForward.forward(
            second_TH, weights, tile, workspace, residual_TH: saved.middle_TH, into: y_TH, saving: saved.feedForward)
    }

    /// `dx_TH` holds the gradient of this layer's output and leaves as the gradient of its input: the residual stream.
    func backward(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, _ rows: KeyValueRows, _ gradients: KeyValueRows,
        _ workspace: Workspace, _ saved: LayerSaved, _ auxiliary: RouterAuxiliary?, _ dx_TH: Tensor
    ) {
        let dnormed_TH = workspace.dnormed_TH.rows(0..<tile.count), weights = weights.keeping(saved.low)
        func normed(_ kept_TH: Tensor?, _ x_TH: Tensor, _ norm: Norm) -> Tensor {
            if let kept_TH { return kept_TH }
            let normed_TH = workspace.normed_TH.rows(0..<tile.count)
            backend.rmsNorm(x_TH, norm.weight_H, epsilon: epsilon, into: normed_TH)
            return normed_TH
        }
        let second_TH = normed(saved.normed?.second_TH, saved.middle_TH, weights.postAttentionNorm)
        feedForward.backward(
            second_TH, weights, tile, workspace, saved.feedForward, auxiliary, dx_TH, into: dnormed_TH)
        backend.rmsNormBackward(
            saved.middle_TH, weights.postAttentionNorm.weight_H, epsilon: epsilon, dnormed_TH,
            adding: dx_TH, accumulating: weights.postAttentionNorm.dweight_H)

        let first_TH = normed(saved.normed?.first_TH, x_TH, weights.inputNorm)
        attention.backward(
            first_TH, weights, tile, rows, gradients, workspace, saved.attention, dx_TH, into: dnormed_TH)
        backend.rmsNormBackward(
            x_TH, weights.inputNorm.weight_H, epsilon: epsilon, dnormed_TH,
            adding: dx_TH, accumulating: weights.inputNorm.dweight_H)
    }
}
