internal import MartletCore

// One decoder layer over one tile of a step.
//
//     middle = x + attention(norm(x));   y = middle + feedForward(norm(middle))

/// A piece of a step: consecutive rows, and what their queries may see.
struct Tile {
    /// The tile's rows in the step, which are also its rows in the key/value buffer.
    var rows: Range<Int>
    /// Which of the step's tiles, of how many.
    var place: (number: Int, count: Int)
    var positions_T: Tensor
    var spans: [AttentionSpan]

    var count: Int { rows.count }
    var firstRow: Int { rows.lowerBound }
    /// Tiles come back in reverse order: the step's last one is the first to leave gradients.
    var accumulation: Accumulation { place.number == place.count - 1 ? .first : .later }
    /// The how many-th tile it is in `layer`, those of the layers before counted.
    func turn(layer: Int) -> Int { layer * place.count + place.number }
}

/// What need not be made again before a tile's backward pass.
struct Restored {
    /// Attention's output.
    var output: Bool
    /// All that the second half left, and what enters it.
    var feedForward: Bool
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

    /// Overwrites `y_TH`.
    func forward(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, _ rows: KeyValueRows, _ workspace: Workspace,
        into y_TH: Tensor, saving saved: LayerSaved
    ) {
        let weights = weights.keeping(saved.low)
        let first_TH = saved.normed?.first_TH ?? workspace.normed_TH.rows(0..<tile.count)
        backend.rmsNorm(x_TH, weights.inputNorm.weight_H, epsilon: epsilon, into: first_TH)
        attention.project(first_TH, weights, tile, into: rows, saving: saved.attention)
        attention.attend(weights, tile, rows, workspace, saving: saved.attention)
        finish(x_TH, weights, tile, workspace, into: y_TH, saving: saved)
    }

    /// Makes again what `saved` lacks but `restored`: keys and values of the tile are there.
    func restore(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, _ rows: KeyValueRows, _ workspace: Workspace,
        _ saved: LayerSaved, _ restored: Restored
    ) {
        let first_TH = workspace.normed_TH.rows(0..<tile.count), weights = weights.keeping(saved.low)
        backend.rmsNorm(x_TH, weights.inputNorm.weight_H, epsilon: epsilon, into: first_TH)
        attention.projectQueries(first_TH, weights, tile, saving: saved.attention)
        if !restored.output { attention.attend(weights, tile, rows, workspace, saving: saved.attention) }
        if !restored.feedForward { finish(x_TH, weights, tile, workspace, into: nil, saving: saved) }
    }

    /// What follows attention; with `y_TH` nil only what the backward pass needs.
    private func finish(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, _ workspace: Workspace, into y_TH: Tensor?,
        saving saved: LayerSaved
    ) {
        backend.linear(
            saved.attention.output.output_TQD.flattened, weights.output, firstRow: tile.firstRow,
            into: saved.middle_TH, residual_TO: x_TH)
        let second_TH = saved.normed?.second_TH ?? workspace.normed_TH.rows(0..<tile.count)
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
