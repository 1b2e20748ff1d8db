package import MartletCore

/// A weight of a decoder, by what it does; families say under which names it is stored. The number is the layer.
package enum Weight: Hashable, Sendable {
    /// [V, H]
    case embedding
    /// [H]
    case finalNorm
    /// [V, H]; absent where the embedding serves as the head.
    case head
    /// [H], before attention.
    case inputNorm(Int)
    /// [H], before the MLP.
    case postAttentionNorm(Int)
    /// [Q D, H]
    case query(Int)
    /// [G D, H]
    case key(Int)
    /// [G D, H]
    case value(Int)
    /// [H, Q D]
    case output(Int)
    /// [D], on every query head.
    case queryNorm(Int)
    /// [D], on every key head.
    case keyNorm(Int)
    /// [E, H]
    case router(Int)
    /// [E, 2F, H]; of each expert the F gate rows, then the F up rows.
    case expertsGateUp(Int)
    /// [E, H, F]
    case expertsDown(Int)
    /// [F, H], of a dense MLP.
    case gate(Int)
    /// [F, H], of a dense MLP.
    case up(Int)
    /// [H, F], of a dense MLP.
    case down(Int)

    /// The layer, nil outside the layers.
    package var layer: Int? {
        switch self {
        case .embedding, .finalNorm, .head: nil
        case .inputNorm(let l), .postAttentionNorm(let l), .query(let l), .key(let l), .value(let l), .output(let l),
            .queryNorm(let l), .keyNorm(let l), .router(let l), .expertsGateUp(let l), .expertsDown(let l),
            .gate(let l),
            .up(let l), .down(let l):
            l
        }
    }

    /// Whether the weight is the fused tensor of a layer's experts.
    package var isExperts: Bool {
        switch self {
        case .expertsGateUp, .expertsDown: true
        default: false
        }
    }

    /// Whether the weight is a norm's, [H] or [D].
    package var isNorm: Bool {
        switch self {
        case .finalNorm, .inputNorm, .postAttentionNorm, .queryNorm, .keyNorm: true
        default: false
        }
    }

    /// Whether a low-rank adapter may be put on it: projections and experts.
    package var isAdaptable: Bool {
        switch self {
        case .query, .key, .value, .output, .expertsGateUp, .expertsDown, .gate, .up, .down: true
        default: false
        }
    }
}

extension ModelConfiguration {
    /// Every weight of the model, in the order of the flow.
    package var weights: [Weight] {
        var weights: [Weight] = [.embedding]
        for l in 0..<layerCount {
            weights += [
                .inputNorm(l), .query(l), .key(l), .value(l), .queryNorm(l), .keyNorm(l), .output(l),
                .postAttentionNorm(l),
            ]
            weights += isSparse[l] ? [.router(l), .expertsGateUp(l), .expertsDown(l)] : [.gate(l), .up(l), .down(l)]
        }
        weights.append(.finalNorm)
        if !tiesEmbeddings { weights.append(.head) }
        return weights
    }

    /// The shape of a weight in memory.
    package func shape(of weight: Weight) -> Shape {
        let h = hiddenSize, q = queryHeadCount * headSize, g = keyValueHeadCount * headSize
        let e = experts?.expertCount ?? 0, f = experts?.innerSize ?? 0
        return switch weight {
        case .embedding, .head: [vocabularyCount, h]
        case .finalNorm, .inputNorm, .postAttentionNorm: [h]
        case .query: [q, h]
        case .key, .value: [g, h]
        case .output: [h, q]
        case .queryNorm, .keyNorm: [headSize]
        case .router: [e, h]
        case .expertsGateUp: [e, 2 * f, h]
        case .expertsDown: [e, h, f]
        case .gate, .up: [denseInnerSize, h]
        case .down: [h, denseInnerSize]
        }
    }

    /// The number of parameters of the whole model.
    package var parameterCount: Int { weights.reduce(0) { $0 + shape(of: $1).count } }
}
