internal import MartletCore

// Grouped-query attention with QK-norm and RoPE.
// T rows of the tile, U rows of the key/value buffer, H hidden, Q query heads, G key/value heads, D head size.
//
//     q, k, v = x Wq, x Wk, x Wv;   q, k = rope(norm(q)), rope(norm(k));   y = residual + attention(q, k, v) Wo

/// What a tile of the attention leaves for its backward pass.
struct AttentionSaved {
    /// Projections before norm and rotation.
    var query_TQD: Tensor
    var key_TGD: Tensor
    /// Queries after both, where there is room.
    var rotated_TQD: Tensor?
    var output: AttentionOutput
}

/// What attention itself leaves.
struct AttentionOutput {
    var output_TQD: Tensor
    var logSumExp_TQ: Tensor

    func rows(_ rows: Range<Int>) -> AttentionOutput {
        AttentionOutput(output_TQD: output_TQD.rows(rows), logSumExp_TQ: logSumExp_TQ.rows(rows))
    }
}

/// Rows of keys (rotated) and values that queries read: of the whole step, or of a generation so far.
struct KeyValueRows {
    var key_UGD: Tensor
    var value_UGD: Tensor
}

struct Attention {
    let backend: any Backend
    let scale: Float
    let rope: RoPE

    /// Computes this tile's keys and values into its rows of `rows`, and the unrotated keys into `saved`.
    func keysAndValues(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, into rows: KeyValueRows, saving saved: AttentionSaved
    ) {
        backend.linear(
            x_TH, [weights.key, weights.value], firstRow: tile.firstRow,
            into: [saved.key_TGD.flattened, rows.value_UGD.rows(tile.rows).flattened])
        rotateKeys(weights, tile, into: rows, from: saved)
    }

    func rotateKeys(_ weights: LayerWeights, _ tile: Tile, into rows: KeyValueRows, from saved: AttentionSaved) {
        backend.rotate(
            saved.key_TGD, weights.keyNorm, rope, tile.positions_T, into: rows.key_UGD.rows(tile.rows))
    }

    /// Queries, and keys and values with them.
    func project(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, into rows: KeyValueRows, saving saved: AttentionSaved
    ) {
        backend.linear(
            x_TH, [weights.query, weights.key, weights.value], firstRow: tile.firstRow,
            into: [
                saved.query_TQD.flattened, saved.key_TGD.flattened, rows.value_UGD.rows(tile.rows).flattened,
            ])
        rotateKeys(weights, tile, into: rows, from: saved)
    }

    /// Queries alone.
    func projectQueries(_ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, saving saved: AttentionSaved) {
        backend.linear(
            x_TH, weights.query, firstRow: tile.firstRow, into: saved.query_TQD.flattened, adds: false)
    }

    /// Attention of the tile's queries over the keys and values in `rows`.
    func attend(
        _ weights: LayerWeights, _ tile: Tile, _ rows: KeyValueRows, _ workspace: Workspace,
        saving saved: AttentionSaved
    ) {
        let rotated_TQD = saved.rotated_TQD ?? workspace.query_TQD.rows(0..<tile.count)
        backend.rotate(saved.query_TQD, weights.queryNorm, rope, tile.positions_T, into: rotated_TQD)
        backend.attention(
            rotated_TQD, rows.key_UGD, rows.value_UGD, tile.spans, scale: scale,
            into: saved.output.output_TQD, logSumExp_TQ: saved.output.logSumExp_TQ)
    }

    /// Tiles come in reverse order, so the gradients of this tile's keys and values are complete once its own queries
    /// have been added: later queries came before, earlier ones never saw these keys.
    func backward(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, _ rows: KeyValueRows, _ gradients: KeyValueRows,
        _ workspace: Workspace, _ saved: AttentionSaved, _ dy_TH: Tensor, into dx_TH: Tensor
    ) {
        let rotated_TQD = saved.rotated_TQD ?? workspace.query_TQD.rows(0..<tile.count)
        let doutput_TQD = workspace.doutput_TQD.rows(0..<tile.count)
        let dquery_TQD = workspace.dquery_TQD.rows(0..<tile.count)
        let dkey_TGD = workspace.dkey_TGD.rows(0..<tile.count)
        let first = tile.firstRow

        backend.linearBackward(
            saved.output.output_TQD.flattened, weights.output, firstRow: first, dy_TH, into: doutput_TQD.flattened,
            adds: false, gradients: tile.accumulation)
        if saved.rotated_TQD == nil {
            backend.rotate(saved.query_TQD, weights.queryNorm, rope, tile.positions_T, into: rotated_TQD)
        }
        backend.attentionBackward(
            rotated_TQD, rows.key_UGD, rows.value_UGD, saved.output.output_TQD, saved.output.logSumExp_TQ, doutput_TQD,
            tile.spans, scale: scale, into: dquery_TQD, adding: gradients.key_UGD, gradients.value_UGD)
        // The rotated queries are done with; their buffer takes the gradient of the unrotated ones.
        backend.rotateBackward(
            saved.query_TQD, weights.queryNorm, rope, tile.positions_T, dquery_TQD, into: rotated_TQD)
        backend.rotateBackward(
            saved.key_TGD, weights.keyNorm, rope, tile.positions_T, gradients.key_UGD.rows(tile.rows), into: dkey_TGD)
        backend.linearBackward(
            x_TH, [weights.query, weights.key, weights.value], firstRow: first,
            [rotated_TQD.flattened, dkey_TGD.flattened, gradients.value_UGD.rows(tile.rows).flattened], into: dx_TH,
            gradients: tile.accumulation)
    }
}

extension Tensor {
    /// [T, N, D] as [T, N * D].
    var flattened: Tensor { reshaped([shape[0], shape[1] * shape[2]]) }
}
