package import MartletCore

// One optimizer step, layer-major: all of the step's tokens go through layer l, tile by tile, before layer l + 1.

extension Model {
    /// Forward and backward over a whole step. Gradients of earlier steps leave no trace; the loss is the mean over the step's
    /// targets, and its gradients are left multiplied by `lossScale`.
    package func trainStep(
        _ step: PackedStep, index: Int, lossScale: Float = 1
    ) throws(MartletError) -> StepOutcome {
        precondition(settings.trains, "a model made for inference cannot train")
        dropoutStep = index
        defer { dropoutStep = nil }
        let tiles = try begin(step)
        var outcome = try forward(step, tiles)
        // After the forward pass, which may still have had to apply them.
        backend.zero(staying.flatMap { parameters[$0] }.filter(\.startsFromZero).map(\.gradient))
        guard outcome.targetCount > 0 else {
            throw MartletError(
                "a step has no token to learn from", in: "step \(index)",
                because: "none of its \(step.tokenCount) tokens counts in the loss",
                fix: "check the loss mask with `martlet inspect`, or raise max_length so that answers are not cut off")
        }
        takeLoss(tiles, gradientScale: lossScale / Float(outcome.targetCount))
        let zScale = prepareAuxiliary(step, tiles, lossScale, &outcome)
        try backward(step, tiles, zScale: zScale)
        sumSquares()
        try read(step, tiles, &outcome)
        return outcome
    }

    /// Forward only: the loss of a step.
    package func evaluate(_ step: PackedStep) throws(MartletError) -> StepOutcome {
        let tiles = try begin(step)
        var outcome = try forward(step, tiles)
        takeLoss(tiles, gradientScale: nil)
        try read(step, tiles, &outcome)
        return outcome
    }

    /// Logits of every row, for tests and for checking what was exported: `plan.logitRows` must be a tile's rows.
    package func logits(_ step: PackedStep) throws(MartletError) -> [Float] {
        let tiles = try begin(step)
        _ = try forward(step, tiles)
        return tiles.flatMap { tile in floats(logits(of: finalHidden.rows(tile.rows))) }
    }

    /// The likeliest token after each sequence of a step; `plan.logitRows` must be at least 1.
    package func likeliestNext(_ step: PackedStep) throws(MartletError) -> [Int32] {
        _ = try forward(step, try begin(step))
        return step.offsets.dropFirst().map { end in
            let logits = floats(logits(of: finalHidden.rows(end - 1..<end)))
            return Int32(logits.indices.reduce(0) { logits[$1] > logits[$0] ? $1 : $0 })
        }
    }

    // MARK: Stations

    /// Checks a step against the plan and puts its ids where the ops read them.
    private func begin(_ step: PackedStep) throws(MartletError) -> [Tile] {
        routerSums = RouterSums()
        let T = step.tokenCount
        guard T > 0, T <= plan.stepTokens else {
            throw MartletError(
                "a step holds \(T) tokens", in: "the packed step", because: "the plan is for 1 to \(plan.stepTokens)",
                fix: "keep max_length x batch x accumulation within the planned step")
        }
        for (row, token) in step.tokens.enumerated() where token < 0 || token >= configuration.vocabularyCount {
            throw MartletError(
                "token id \(token) is not in the model's vocabulary", in: "row \(row) of a packed step",
                because: "the embedding has \(configuration.vocabularyCount) rows",
                fix: "use the tokenizer that belongs to this checkpoint")
        }
        if let longest = step.positions.max(), longest >= plan.maximumLength {
            throw MartletError(
                "a sequence is \(longest + 1) tokens long", in: "the packed step",
                because: "the plan is for at most \(plan.maximumLength)", fix: "raise max_length, or truncate")
        }
        upload(step.tokens, into: memory.tokens_T.rows(0..<T))
        upload(step.targets, into: memory.targets_T.rows(0..<T))
        upload(step.positions, into: memory.positions_T.rows(0..<T))
        let count = ceilDiv(T, plan.tileTokens)
        return (0..<count).map { number in
            let rows = number * plan.tileTokens..<min((number + 1) * plan.tileTokens, T)
            return Tile(
                rows: rows, place: (number, count), positions_T: memory.positions_T.rows(rows),
                spans: step.spans(in: rows))
        }
    }

    private func forward(_ step: PackedStep, _ tiles: [Tile]) throws(MartletError) -> StepOutcome {
        var outcome = StepOutcome()
        outcome.targetCount = step.targetCount
        let embedding = outer(.embedding).value
        memory.hidden.beginWriting(0)
        for tile in tiles {
            backend.embedding(memory.tokens_T.rows(tile.rows), embedding, into: hidden(0).rows(tile.rows))
        }
        // The rows that a backward pass will want again.
        let wanted = dropoutStep == nil ? 0..<0 : 0..<step.tokenCount
        memory.hidden.finishWriting(0, rows: wanted)
        for index in 0..<configuration.layerCount {
            let weights = try weights(of: index)
            let rows = keyValueRows(index)
            pending?.update(layer: index)
            memory.hidden.beginWriting(index + 1)
            let outputLeaves = index < memory.outputLayersOut
            if outputLeaves { memory.outputsOut.beginWriting(index) }
            memory.downLow.beginWriting(index)
            let keeps = memory.kept[index] != nil
            for tile in tiles {
                let saved = saved(index, tile), turn = tile.turn(layer: index)
                if !keeps { memory.tiles.turns.beginWriting(turn) }
                layer.forward(
                    hidden(index).rows(tile.rows), weights, tile, rows, memory.workspace,
                    into: hidden(index + 1).rows(tile.rows), saving: saved)
                if !keeps { memory.tiles.finishWriting(turn, wanted: !wanted.isEmpty) }
                if case .sparse(let routing, _) = saved.feedForward { note(routing) }
            }
            memory.downLow.finishWriting(index, rows: wanted)
            if outputLeaves { memory.outputsOut.finishWriting(index, rows: wanted) }
            memory.hidden.finishWriting(index + 1, rows: wanted)
        }
        pending?.update(layer: configuration.layerCount)
        pending = nil
        return outcome
    }

    /// The loss of every row; with a gradient scale, also the gradient of the last hidden states.
    func takeLoss(_ tiles: [Tile], gradientScale: Float?) {
        let norm = outer(.finalNorm), head = outer(configuration.headWeight)
        for tile in tiles {
            let x_TH = finalHidden.rows(tile.rows)
            let normed_TH = memory.workspace.normed_TH.rows(0..<tile.count)
            let loss_T = memory.results.loss_T.rows(tile.rows)
            let dnormed_TH = gradientScale == nil ? nil : memory.workspace.dnormed_TH.rows(0..<tile.count)
            backend.rmsNorm(x_TH, norm.value, epsilon: configuration.rmsEpsilon, into: normed_TH)
            backend.crossEntropy(
                normed_TH, head.value, memory.targets_T.rows(tile.rows), gradientScale: gradientScale,
                into: loss_T, dnormed_TH, accumulating: gradientScale == nil ? nil : head.gradient)
            if let dnormed_TH, let dx_TH = memory.dhidden_TH?.rows(tile.rows) {
                backend.zero(dx_TH)
                backend.rmsNormBackward(
                    x_TH, norm.value, epsilon: configuration.rmsEpsilon, dnormed_TH,
                    adding: dx_TH, accumulating: norm.gradient)
            }
        }
    }

    private func backward(_ step: PackedStep, _ tiles: [Tile], zScale: Float?) throws(MartletError) {
        guard let dhidden_TH = memory.dhidden_TH, let dkeyValues = memory.dkeyValues_2UGD else { return }
        let dstep = KeyValueRows(key_UGD: dkeyValues[0], value_UGD: dkeyValues[1])
        let rowsOfStep = 0..<step.tokenCount
        let auxiliary = zScale.map { RouterAuxiliary(dprobability_E: memory.workspace.dprobability_E, zScale: $0) }
        var gradients = LeavingGradients(memory, backend)
        for index in (0..<configuration.layerCount).reversed() {
            let weights = try weights(of: index)
            let keeps = memory.kept[index] != nil
            // Wanted sooner than the layer before.
            if !keeps, let tile = tiles.last { memory.tiles.fetch(before: tile.turn(layer: index)) }
            for tensors in [memory.hidden, memory.outputsOut, memory.downLow] {
                tensors.wait(for: index)
                tensors.fetch(index - 1, rows: rowsOfStep)
            }
            gradients.begin(layer: index)
            let rows = keyValueRows(index), x_TH = hidden(index)
            let hasOutput = memory.keptOutputs[index] != nil || index < memory.outputLayersOut
            backend.zero(dkeyValues)
            for tile in tiles { restoreKeys(x_TH.rows(tile.rows), weights, tile, rows, index, keeps: keeps) }
            for tile in tiles.reversed() {
                let saved = saved(index, tile)
                let x_TH = x_TH.rows(tile.rows)
                if !keeps {
                    let turn = tile.turn(layer: index)
                    let hasFeedForward = memory.tiles.turns.recall(turn)
                    memory.tiles.fetch(before: turn)
                    layer.restore(
                        x_TH, weights, tile, rows, memory.workspace, saved,
                        Restored(output: hasOutput, feedForward: hasFeedForward))
                }
                layer.backward(
                    x_TH, weights, tile, rows, dstep, memory.workspace, saved, auxiliary, dhidden_TH.rows(tile.rows))
            }
            gradients.end(layer: index)
        }
        gradients.finish()
        if let dtable_VH = outer(.embedding).gradient {
            for tile in tiles {
                backend.embeddingBackward(
                    memory.tokens_T.rows(tile.rows), dhidden_TH.rows(tile.rows), accumulating: dtable_VH)
            }
        }
    }

    /// Makes the rotated keys of a tile (and, where the layer kept nothing, keys and values from its input) again.
    private func restoreKeys(
        _ x_TH: Tensor, _ weights: LayerWeights, _ tile: Tile, _ rows: KeyValueRows, _ index: Int, keeps: Bool
    ) {
        let saved = saved(index, tile)
        guard !keeps else {
            if memory.kept[index]?.rotatedKey_TGD == nil {
                layer.attention.rotateKeys(weights, tile, into: rows, from: saved.attention)
            }
            return
        }
        let normed_TH = memory.workspace.normed_TH.rows(0..<tile.count)
        backend.rmsNorm(x_TH, weights.inputNorm.weight_H, epsilon: configuration.rmsEpsilon, into: normed_TH)
        layer.attention.keysAndValues(
            normed_TH, weights.keeping(saved.low), tile, into: rows, saving: saved.attention)
    }

    // MARK: Router losses and counts

    /// Gathers what the router's losses need of a tile.
    private func note(_ routing: Routing) {
        guard settings.trainsRouter, dropoutStep != nil else { return }
        routerSums.add(probabilities: floats(routing.probability_TE), logSumExp: floats(routing.logSumExp_T))
    }

    /// The load-balancing loss, E * sum of f_e P_e pooled over all sparse layers and tokens (Fedus et al. 2021; f_e sums
    /// to K), and the z loss, the mean of logSumExp^2 (Zoph et al. 2022): their values, and their gradients' factors.
    private func prepareAuxiliary(
        _ step: PackedStep, _ tiles: [Tile], _ lossScale: Float, _ outcome: inout StepOutcome
    ) -> Float? {
        guard settings.trainsRouter, let E = configuration.experts?.expertCount, routerSums.rowCount > 0 else {
            return nil
        }
        let sums = routerSums
        routerSums = RouterSums()
        let rows = Double(sums.rowCount)
        var share_E = [Double](repeating: 0, count: E)
        for load in expertLoads(tiles, integers(memory.results.offset_LE1)) {
            for expert in 0..<E { share_E[expert] += Double(load[expert]) / rows }
        }
        let balance = Double(E) * zip(share_E, sums.probability_E).reduce(0) { $0 + $1.0 * $1.1 / rows }
        outcome.auxiliaryLoss = settings.auxiliaryLossCoefficient * balance
        outcome.zLoss = settings.zLossCoefficient * sums.squaredLogSumExp / rows
        let factor = settings.auxiliaryLossCoefficient * Double(E) / rows
        upload(share_E.map { lossScale * Float(factor * $0) }, into: memory.workspace.dprobability_E)
        return lossScale * Float(2 * settings.zLossCoefficient / rows)
    }

    /// Waits for the step, and reads its loss, its loads and its gradients' squares.
    private func read(_ step: PackedStep, _ tiles: [Tile], _ outcome: inout StepOutcome) throws(MartletError) {
        let values = memory.results.read(by: backend)
        outcome.lossSum = values.loss_T.prefix(step.tokenCount).reduce(0) { $0 + Double($1) }
        outcome.expertLoad_LE = expertLoads(tiles, values.offset_LE1)
        squares = values.squares_P
        try backend.finish()
    }

    /// Rows of each expert of each sparse layer.
    private func expertLoads(_ tiles: [Tile], _ offsets: [Int32]) -> [[Int]] {
        let shape = memory.results.offset_LE1.shape, layers = shape[0], room = shape[1], E = shape[2] - 1
        // Plain loops: the GPU waits meanwhile.
        var load_LE = [[Int]](repeating: [Int](repeating: 0, count: E), count: layers)
        for layer in 0..<layers {
            for tile in tiles.indices {
                let start = (layer * room + tile) * (E + 1)
                for expert in 0..<E {
                    load_LE[layer][expert] += Int(offsets[start + expert + 1] - offsets[start + expert])
                }
            }
        }
        return load_LE
    }

    // MARK: Where things are

    /// The hidden states entering layer `index`.
    func hidden(_ index: Int) -> Tensor { memory.hidden[index][0] }
    var finalHidden: Tensor { hidden(configuration.layerCount) }

    func keyValueRows(_ index: Int) -> KeyValueRows {
        var rows = memory.keyValueRows[plan.caches ? index : 0]
        if let kept = memory.kept[index]?.value_TGD { rows.value_UGD = kept }
        if let kept = memory.kept[index]?.rotatedKey_TGD { rows.key_UGD = kept }
        return rows
    }

    func saved(_ index: Int, _ tile: Tile) -> LayerSaved {
        guard let activations = memory.kept[index] ?? memory.tiles.activations[configuration.isSparse[index]] else {
            preconditionFailure("layer \(index) has no memory for its activations")
        }
        var output = memory.keptOutputs[index]
        if index < memory.outputLayersOut {
            let tensors = memory.outputsOut[index]
            output = AttentionOutput(output_TQD: tensors[0], logSumExp_TQ: tensors[1])
        }
        var saved = activations.saved(
            for: tile, turn: tile.turn(layer: index), output: output?.rows(tile.rows),
            offset_E1: offset_E1(index, tile))
        if let low_TA = memory.downLow[index].first {
            let isSparse = configuration.isSparse[index]
            let rows = tile.count * configuration.routes(isSparse: isSparse)
            saved.low[isSparse ? .expertsDown : .down] = low_TA.rows(tile.rows).reshaped([rows, memory.lowRank])
        }
        return saved
    }

    /// The routing's offsets of a tile in a sparse layer.
    private func offset_E1(_ index: Int, _ tile: Tile) -> Tensor? {
        guard configuration.isSparse[index] else { return nil }
        return memory.results.offset_LE1[configuration.isSparse[..<index].count { $0 }][tile.place.number]
    }

    /// Logits of the final hidden states `x_TH`, in `plan.logitRows` rows at most.
    func logits(of x_TH: Tensor) -> Tensor {
        let logits_TV = memory.logits_TV.rows(0..<x_TH.shape[0])
        let normed_TH = memory.workspace.normed_TH.rows(0..<x_TH.shape[0])
        backend.rmsNorm(x_TH, outer(.finalNorm).value, epsilon: configuration.rmsEpsilon, into: normed_TH)
        let head = Linear(weight_OI: outer(configuration.headWeight).value)
        backend.linear(normed_TH, head, firstRow: 0, into: logits_TV, adds: false)
        return logits_TV
    }
}

extension Model {
    /// The sum of squares of each parameter's gradient, which carries the loss scale, as the last `trainStep` found it.
    package func gradientSquares() -> [Double] { squares }

    /// The parameters whose gradients stay in the backend's memory: those before and those behind the layers whose leave it.
    private var staying: [Range<Int>] {
        let leaving = memory.layerParameters.prefix(memory.gradientPieces.count)
        guard let first = leaving.first, let last = leaving.last else { return [parameters.indices] }
        return [0..<first.lowerBound, last.upperBound..<parameters.count]
    }

    /// Squares of gradients that leave were taken before they left. Queued before anybody waits: the list is long.
    private func sumSquares() {
        for range in staying where !range.isEmpty {
            backend.sumsOfSquares(of: parameters[range].map(\.gradient), into: memory.results.squares_P.rows(range))
        }
    }
}

/// Sums over a step that the router losses need, kept in double.
struct RouterSums {
    var rowCount = 0
    var probability_E: [Double] = []
    var squaredLogSumExp = 0.0

    mutating func add(probabilities: [Float], logSumExp: [Float]) {
        let E = probabilities.count / max(logSumExp.count, 1)
        if probability_E.isEmpty { probability_E = Array(repeating: 0, count: E) }
        for (i, p) in probabilities.enumerated() { probability_E[i % E] += Double(p) }
        for value in logSumExp { squaredLogSumExp += Double(value) * Double(value) }
        rowCount += logSumExp.count
    }
}

extension PackedStep {
    /// The parts of the sequences that lie in `rows`, and the earlier rows that they see.
    func spans(in rows: Range<Int>) -> [AttentionSpan] {
        // Binary search for the sequence that holds the first row.
        var low = 0, high = sequenceCount - 1
        while low < high {
            let middle = (low + high + 1) / 2
            if offsets[middle] <= rows.lowerBound { low = middle } else { high = middle - 1 }
        }
        var spans: [AttentionSpan] = []
        for sequence in low..<sequenceCount where offsets[sequence] < rows.upperBound {
            let start = max(offsets[sequence], rows.lowerBound), end = min(offsets[sequence + 1], rows.upperBound)
            guard start < end else { continue }
            spans.append(
                AttentionSpan(
                    queryStart: start - rows.lowerBound, queryCount: end - start,
                    keyStart: offsets[sequence], keyCount: end - offsets[sequence]))
        }
        return spans
    }
}
