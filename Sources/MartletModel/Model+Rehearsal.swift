internal import MartletCore

extension Model {
    /// Shows the backend the ops of a step, before weights are read: which kernels it takes depends on how many tokens there are, and
    /// packed steps differ in that.
    func rehearse() {
        guard settings.trains, let dhidden_TH = memory.dhidden_TH else { return }
        let parts = 16, counts = Set((1...parts).map { max(1, plan.tileTokens * $0 / parts) })
        // Of either kind one that makes its activations again, if there is one, and one that keeps them.
        let layers = Set(
            [true, false].flatMap { isSparse in
                let layers = configuration.isSparse.indices.filter { configuration.isSparse[$0] == isSparse }
                return [layers.first, layers.last].compactMap { $0 }
            })
        dropoutStep = 0
        defer { dropoutStep = nil }
        backend.rehearse {
            for count in counts {
                let span = AttentionSpan(queryStart: 0, queryCount: count, keyStart: 0, keyCount: count)
                let tile = Tile(
                    rows: 0..<count, place: (0, 1), positions_T: memory.positions_T.rows(0..<count), spans: [span])
                backend.embedding(
                    memory.tokens_T.rows(tile.rows), outer(.embedding).value, into: hidden(0).rows(tile.rows))
                for index in layers { rehearse(tile, layer: index, dhidden_TH.rows(tile.rows)) }
                takeLoss([tile], gradientScale: 1)
            }
        }
    }

    private func rehearse(_ tile: Tile, layer index: Int, _ dx_TH: Tensor) {
        guard let dkeyValues = memory.dkeyValues_2UGD else { return }
        let weights = place(of: index), rows = keyValueRows(index), saved = saved(index, tile)
        let dstep = KeyValueRows(key_UGD: dkeyValues[0], value_UGD: dkeyValues[1])
        let x_TH = hidden(index).rows(tile.rows)
        layer.forward(
            x_TH, weights, tile, rows, memory.workspace, into: hidden(index + 1).rows(tile.rows), saving: saved)
        if memory.kept[index] == nil {
            layer.restore(
                x_TH, weights, tile, rows, memory.workspace, saved, Restored(output: false, feedForward: false))
        }
        layer.backward(x_TH, weights, tile, rows, dstep, memory.workspace, saved, nil, dx_TH)
    }
}
