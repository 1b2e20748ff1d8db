internal import MartletCore

/// Qwen3, dense and mixture of experts: `qwen3` and `qwen3_moe`.
extension Family {
    package static let qwen3 = Family(
        modelTypes: ["qwen3", "qwen3_moe"], readConfiguration: readConfig, writeConfiguration: writeConfig,
        layouts: storedLayouts)
}

@Sendable private func readConfig(_ config: ConfigurationReader) throws(MartletError) -> ModelConfiguration {
    let modelType = config.value("model_type")?.string ?? "", isMoE = modelType == "qwen3_moe"
    let layers = try config.integer("num_hidden_layers", in: 1...1024)
    let heads = try config.integer("num_attention_heads", in: 1...1024)
    let hidden = try config.integer("hidden_size", in: 1...131_072)
    let headSize = try config.integer("head_dim", in: 2...1024, default: isMoE ? max(hidden / heads, 1) : 128)
    let keyValueHeads = try config.integer("num_key_value_heads", in: 1...1024, default: isMoE ? 4 : heads)
    guard heads % keyValueHeads == 0 else {
        throw config.wrong("num_key_value_heads", .integer(keyValueHeads), "a divisor of num_attention_heads, \(heads)")
    }
    guard headSize % 2 == 0 else { throw config.wrong("head_dim", .integer(headSize), "even, for rotary positions") }
    try refuseUnsupported(config, isMoE: isMoE, layers: layers)
    let experts = isMoE ? try readExperts(config) : nil
    let isSparse = isMoE ? try readSparsity(config, layers: layers) : [Bool](repeating: false, count: layers)
    return ModelConfiguration(
        modelType: modelType, hiddenSize: hidden, layerCount: layers,
        vocabularyCount: try config.integer("vocab_size", in: 1...16_777_216),
        queryHeadCount: heads, keyValueHeadCount: keyValueHeads, headSize: headSize,
        denseInnerSize: try config.integer("intermediate_size", in: 1...1_048_576, default: isMoE ? 6144 : nil),
        rmsEpsilon: Float(try config.number("rms_norm_eps", in: 1e-12...1, default: 1e-6)),
        ropeTheta: try config.ropeTheta(default: 10000),
        maximumPositions: try config.integer("max_position_embeddings", in: 1...134_217_728, default: 32768),
        tiesEmbeddings: try config.flag("tie_word_embeddings", default: false),
        experts: experts, isSparse: isSparse,
        endTokens: try config.integers("eos_token_id", in: 0...16_777_215, allowsOne: true))
}

private func readExperts(_ config: ConfigurationReader) throws(MartletError) -> ModelConfiguration.ExpertsConfiguration
{
    let count = try config.integer("num_experts", or: "num_local_experts", in: 1...4096)
    return ModelConfiguration.ExpertsConfiguration(
        expertCount: count,
        expertsPerToken: try config.integer("num_experts_per_tok", in: 1...count),
        innerSize: try config.integer("moe_intermediate_size", in: 1...1_048_576),
        normalizesTopK: try config.flag("norm_topk_prob", default: false),
        auxiliaryLossCoefficient: try config.number("router_aux_loss_coef", in: 0...1000, default: 0.001))
}

/// Layer i is sparse unless `mlp_only_layers` names it or (i + 1) is no multiple of `decoder_sparse_step`.
private func readSparsity(_ config: ConfigurationReader, layers: Int) throws(MartletError) -> [Bool] {
    let step = try config.integer("decoder_sparse_step", in: 1...1_000_000, default: 1)
    let dense = Set(try config.integers("mlp_only_layers", in: 0...1_000_000))
    return (0..<layers).map { !dense.contains($0) && ($0 + 1) % step == 0 }
}

private func refuseUnsupported(_ config: ConfigurationReader, isMoE: Bool, layers: Int) throws(MartletError) {
    try config.require("hidden_act", isOneOf: "silu")
    try config.require("attention_bias", isOneOf: false)
    try config.require("mlp_bias", isOneOf: false)
    try config.require("attention_dropout", isOneOf: 0)
    if let value = config.value("quantization_config") {
        throw config.unsupported("quantization_config", value, "supported: BF16, F16 and F32 weights, no such key")
    }
    if let types = config.value("layer_types"), types.array?.contains(where: { $0 != "full_attention" }) ?? true {
        throw config.unsupported("layer_types", types, "supported: \"full_attention\" for every layer")
    }
    let firstSliding = isMoE ? 0 : try config.integer("max_window_layers", in: 0...1_000_000, default: 28)
    if try config.flag("use_sliding_window", default: false), let window = config.value("sliding_window"),
        firstSliding < layers
    {
        throw config.unsupported("sliding_window", window, "supported: \"use_sliding_window\": false")
    }
}

@Sendable private func writeConfig(_ c: ModelConfiguration) -> JSONObject {
    var json: JSONObject = [
        "architectures": [.string(c.experts == nil ? "Qwen3ForCausalLM" : "Qwen3MoeForCausalLM")],
        "model_type": .string(c.modelType), "attention_bias": false, "attention_dropout": 0.0,
        "head_dim": .integer(c.headSize), "hidden_act": "silu", "hidden_size": .integer(c.hiddenSize),
        "initializer_range": 0.02, "intermediate_size": .integer(c.denseInnerSize),
        "max_position_embeddings": .integer(c.maximumPositions), "max_window_layers": .integer(c.layerCount),
        "num_attention_heads": .integer(c.queryHeadCount), "num_hidden_layers": .integer(c.layerCount),
        "num_key_value_heads": .integer(c.keyValueHeadCount),
        "rms_norm_eps": .number(Double("\(c.rmsEpsilon)") ?? 1e-6),
        "rope_scaling": .null, "rope_theta": .number(c.ropeTheta), "sliding_window": .null,
        "tie_word_embeddings": .bool(c.tiesEmbeddings), "use_cache": true, "use_sliding_window": false,
        "vocab_size": .integer(c.vocabularyCount),
    ]
    if let experts = c.experts {
        json["decoder_sparse_step"] = 1
        json["mlp_only_layers"] = .array(c.isSparse.indices.filter { !c.isSparse[$0] }.map { .integer($0) })
        json["moe_intermediate_size"] = .integer(experts.innerSize)
        json["norm_topk_prob"] = .bool(experts.normalizesTopK)
        json["num_experts"] = .integer(experts.expertCount)
        json["num_experts_per_tok"] = .integer(experts.expertsPerToken)
        json["output_router_logits"] = false
        json["router_aux_loss_coef"] = .number(experts.auxiliaryLossCoefficient)
    }
    if let first = c.endTokens.first {
        json["eos_token_id"] = c.endTokens.count == 1 ? .integer(first) : .array(c.endTokens.map { .integer($0) })
    }
    return json
}

@Sendable private func storedLayouts(_ weight: Weight, _ c: ModelConfiguration) -> [[WeightPart]] {
    let shape = c.shape(of: weight).array
    func plain(_ name: String) -> [[WeightPart]] { [[WeightPart(name + ".weight", shape)]] }
    func layer(_ l: Int, _ name: String) -> [[WeightPart]] { plain("model.layers.\(l).\(name)") }
    return switch weight {
    case .embedding: plain("model.embed_tokens")
    case .finalNorm: plain("model.norm")
    case .head: plain("lm_head")
    case .inputNorm(let l): layer(l, "input_layernorm")
    case .postAttentionNorm(let l): layer(l, "post_attention_layernorm")
    case .query(let l): layer(l, "self_attn.q_proj")
    case .key(let l): layer(l, "self_attn.k_proj")
    case .value(let l): layer(l, "self_attn.v_proj")
    case .output(let l): layer(l, "self_attn.o_proj")
    case .queryNorm(let l): layer(l, "self_attn.q_norm")
    case .keyNorm(let l): layer(l, "self_attn.k_norm")
    case .router(let l): layer(l, "mlp.gate")
    case .gate(let l): layer(l, "mlp.gate_proj")
    case .up(let l): layer(l, "mlp.up_proj")
    case .down(let l): layer(l, "mlp.down_proj")
    case .expertsGateUp(let l):
        expertLayouts("model.layers.\(l).mlp.experts", ["gate_proj", "up_proj"], "gate_up_proj", shape)
    case .expertsDown(let l): expertLayouts("model.layers.\(l).mlp.experts", ["down_proj"], "down_proj", shape)
    }
}

/// One matrix an expert and projection; or all fused in one tensor, [E, rows, columns] or [E, columns, rows].
private func expertLayouts(_ module: String, _ projections: [String], _ fused: String, _ shape: [Int]) -> [[WeightPart]]
{
    let rows = shape[1] / projections.count
    let separate = (0..<shape[0]).flatMap { e in
        projections.enumerated().map { i, name in
            WeightPart("\(module).\(e).\(name).weight", [rows, shape[2]], firstRow: e * shape[1] + i * rows)
        }
    }
    let name = "\(module).\(fused)"
    return [
        separate, [WeightPart(name, shape)], [WeightPart(name, [shape[0], shape[2], shape[1]], isTransposed: true)],
    ]
}
