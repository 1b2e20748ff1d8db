package import MartletCore

/// Feeds tokens through a model made with a key/value cache and gives the logits that follow.
package final class Generation {
    private let model: Model
    /// Tokens in the cache.
    package private(set) var count = 0

    package init(_ model: Model) {
        precondition(model.plan.caches && model.plan.logitRows > 0, "the plan has no key/value cache")
        self.model = model
    }

    /// Appends `tokens` to the context; the logits are those of the token after the last one.
    package func feed(_ tokens: [Int32]) throws(MartletError) -> [Float] {
        guard !tokens.isEmpty, count + tokens.count <= model.plan.stepTokens else {
            throw MartletError(
                "the context is full", in: "generation",
                because: "\(count + tokens.count) tokens were to go into \(model.plan.stepTokens) rows",
                fix: "ask for fewer tokens, shorten the prompt, or raise --context")
        }
        model.settle()
        var logits: [Float] = []
        for start in stride(from: 0, to: tokens.count, by: model.plan.tileTokens) {
            let chunk = Array(tokens[start..<min(start + model.plan.tileTokens, tokens.count)])
            logits = try feed(chunk: chunk, isLast: start + chunk.count == tokens.count)
        }
        return logits
    }

    private func feed(chunk: [Int32], isLast: Bool) throws(MartletError) -> [Float] {
        let memory = model.memory, n = chunk.count
        for token in chunk where token < 0 || token >= model.configuration.vocabularyCount {
            throw MartletError(
                "token id \(token) is not in the model's vocabulary", in: "the prompt",
                because: "the embedding has \(model.configuration.vocabularyCount) rows",
                fix: "use the tokenizer that belongs to this checkpoint")
        }
        let tokens_T = memory.tokens_T.rows(0..<n), positions_T = memory.positions_T.rows(0..<n)
        model.upload(chunk, into: tokens_T)
        model.upload((0..<n).map { Int32(count + $0) }, into: positions_T)
        let span = AttentionSpan(queryStart: 0, queryCount: n, keyStart: 0, keyCount: count + n)
        let tile = Tile(rows: count..<(count + n), place: (0, 1), positions_T: positions_T, spans: [span])
        model.backend.embedding(tokens_T, model.outer(.embedding).value, into: model.hidden(0).rows(0..<n))
        for index in 0..<model.configuration.layerCount {
            let weights = try model.weights(of: index)
            model.layer.forward(
                model.hidden(index).rows(0..<n), weights, tile, model.keyValueRows(index), memory.workspace,
                into: model.hidden(index + 1).rows(0..<n), saving: model.saved(index, tile))
        }
        count += n
        return isLast ? model.floats(model.logits(of: model.finalHidden.rows(n - 1..<n))[0]) : []
    }
}
