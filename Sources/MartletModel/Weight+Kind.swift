extension Weight {
    /// What a weight does, whatever its layer. Weights of one kind have one shape.
    package enum Kind: String, Sendable, CaseIterable {
        case embedding, finalNorm = "final_norm", head
        case inputNorm = "input_norm", query, key, value, output, queryNorm = "query_norm", keyNorm = "key_norm"
        case postAttentionNorm = "post_attention_norm", router
        case expertsGateUp = "experts_gate_up", expertsDown = "experts_down"
        case gate, up, down
    }

    package var kind: Kind {
        switch self {
        case .embedding: .embedding
        case .finalNorm: .finalNorm
        case .head: .head
        case .inputNorm: .inputNorm
        case .query: .query
        case .key: .key
        case .value: .value
        case .output: .output
        case .queryNorm: .queryNorm
        case .keyNorm: .keyNorm
        case .postAttentionNorm: .postAttentionNorm
        case .router: .router
        case .expertsGateUp: .expertsGateUp
        case .expertsDown: .expertsDown
        case .gate: .gate
        case .up: .up
        case .down: .down
        }
    }

    /// Stable name: "layers.3.experts_down", "embedding".
    package var name: String { layer.map { "layers.\($0).\(kind.rawValue)" } ?? kind.rawValue }

    /// The group that the census of trained tensors counts it in.
    package var group: String {
        switch kind {
        case .embedding, .head: "embedding and head"
        case .finalNorm, .inputNorm, .queryNorm, .keyNorm, .postAttentionNorm: "norms"
        case .query, .key, .value, .output: "attention"
        case .router: "router"
        case .expertsGateUp, .expertsDown: "experts"
        case .gate, .up, .down: "dense MLP"
        }
    }
}

extension ModelConfiguration {
    /// The weights of one decoder layer.
    package func layerWeights(_ layer: Int) -> [Weight] { weights.filter { $0.layer == layer } }
    /// The weights outside the layers.
    package var outerWeights: [Weight] { weights.filter { $0.layer == nil } }
    /// What multiplies the final hidden states: the head, or the embedding where they are tied.
    package var headWeight: Weight { tiesEmbeddings ? .embedding : .head }
    /// The leading expert axis of a weight that has one.
    package func expertCount(of weight: Weight) -> Int? { weight.isExperts ? experts?.expertCount : nil }
}
