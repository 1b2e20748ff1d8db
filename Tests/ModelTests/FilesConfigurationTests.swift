import MartletCore
import MartletModel
import MartletTestSupport
import Testing

/// A wrong value of a key of config.json; nil removes the key.
private let wrongValues: [(key: String, value: JSON?)] = [
    ("model_type", nil), ("model_type", "qwen3_mow"), ("model_type", "llama"), ("model_type", 3), ("model_type", .null),
    ("hidden_size", nil), ("hidden_size", 0), ("hidden_size", -8), ("hidden_size", 8.5), ("hidden_size", "8"),
    ("hidden_size", .integer(.max)), ("hidden_size", .number(1e300)), ("hidden_size", .null), ("hidden_size", [8]),
    ("num_hidden_layers", nil), ("num_hidden_layers", 0), ("num_hidden_layers", .integer(1 << 40)),
    ("num_hidden_layers", true),
    ("num_attention_heads", 0), ("num_attention_heads", nil), ("num_attention_heads", 5), ("num_key_value_heads", 3),
    ("num_key_value_heads", 0), ("num_key_value_heads", 8), ("head_dim", 7), ("head_dim", 0), ("head_dim", "6"),
    ("vocab_size", nil), ("vocab_size", 0), ("vocab_size", .integer(1 << 62)), ("intermediate_size", -1),
    ("rms_norm_eps", 0.0), ("rms_norm_eps", -1e-6), ("rms_norm_eps", "1e-6"), ("rope_theta", 0), ("rope_theta", "1e6"),
    ("max_position_embeddings", 0), ("max_position_embeddings", "long"), ("tie_word_embeddings", 1),
    ("tie_word_embeddings", "false"), ("num_experts", nil), ("num_experts", 0), ("num_experts", .integer(.max)),
    ("num_experts_per_tok", nil), ("num_experts_per_tok", 4), ("num_experts_per_tok", 0),
    ("moe_intermediate_size", nil),
    ("moe_intermediate_size", .integer(1 << 50)), ("norm_topk_prob", "true"), ("router_aux_loss_coef", "0.1"),
    ("router_aux_loss_coef", -0.1), ("decoder_sparse_step", 0), ("mlp_only_layers", 1), ("mlp_only_layers", ["1"]),
    ("mlp_only_layers", [-1]), ("eos_token_id", "end"), ("eos_token_id", [1.5]), ("hidden_act", "gelu"),
    ("hidden_act", 1), ("attention_bias", true), ("attention_bias", "false"), ("mlp_bias", true),
    ("attention_dropout", 0.1),
    ("quantization_config", ["quant_method": "fp8"]), ("layer_types", ["full_attention", "sliding_attention"]),
    ("layer_types", "full_attention"), ("rope_scaling", ["rope_type": "yarn", "factor": 4.0]),
    ("rope_scaling", ["type": "linear", "factor": 2]), ("rope_scaling", ["factor": 2]), ("rope_scaling", "yarn"),
    ("rope_parameters", ["rope_type": "llama3", "rope_theta": 1e4]), ("rope_parameters", ["rope_theta": "1e4"]),
    ("rope_parameters", ["partial_rotary_factor": 0.5]), ("partial_rotary_factor", 0.5), ("use_sliding_window", "no"),
]

@Suite struct FilesConfigurationTests {
    private let moe = Small.moe.json(dtype: .bfloat16)

    @Test(arguments: [Small.moe, Small.dense]) func whatIsWrittenIsRead(_ configuration: ModelConfiguration) throws {
        let json = configuration.json(dtype: .float16)
        #expect(json["torch_dtype"] == "float16")
        #expect(try ModelConfiguration(json: JSON(parsing: json.text())) == configuration)
    }

    @Test func bothSpellingsMeanTheSame() throws {
        var object = try #require(moe.object)
        object["num_local_experts"] = object["num_experts"]
        object["rope_parameters"] = ["rope_type": "default", "rope_theta": 10000.0]
        object["dtype"] = object["torch_dtype"]
        for key in ["num_experts", "rope_theta", "rope_scaling", "torch_dtype"] { object[key] = nil }
        object["layer_types"] = ["full_attention", "full_attention", "full_attention"]
        #expect(try ModelConfiguration(json: .object(object)) == Small.moe)
        object["rope_parameters"] = ["rope_type": "default", "rope_theta": 777.0]
        #expect(try ModelConfiguration(json: .object(object)).ropeTheta == 777)
    }

    @Test func absentKeysMeanTheFamilysDefaults() throws {
        let dense = try ModelConfiguration(json: [
            "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16,
            "vocab_size": 9,
            "intermediate_size": 64,
        ])
        #expect(dense.headSize == 128 && dense.keyValueHeadCount == 16 && dense.rmsEpsilon == 1e-6)
        #expect(
            dense.ropeTheta == 10000 && dense.maximumPositions == 32768 && !dense.tiesEmbeddings && dense.experts == nil
        )
        let sparse = try ModelConfiguration(json: [
            "model_type": "qwen3_moe", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16,
            "vocab_size": 9,
            "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        ])
        #expect(sparse.headSize == 64 && sparse.keyValueHeadCount == 4 && sparse.isSparse == [true, true])
        #expect(sparse.experts?.normalizesTopK == false && sparse.experts?.auxiliaryLossCoefficient == 0.001)
    }

    @Test func sparsityFollowsBothKeys() throws {
        let json = edited(edited(moe, "mlp_only_layers", [1, 5]), "num_hidden_layers", 6)
        #expect(try ModelConfiguration(json: json).isSparse == [true, false, true, true, true, false])
        let stepped = try ModelConfiguration(json: edited(json, "decoder_sparse_step", 2))
        #expect(stepped.isSparse == [false, false, false, true, false, false])
    }

    @Test func slidingWindowsAreRefusedOnlyWhereTheyAct() throws {
        var json = edited(Small.dense.json(dtype: .bfloat16), "sliding_window", 8)
        #expect(try ModelConfiguration(json: json) == Small.dense)
        json = edited(json, "use_sliding_window", true)
        #expect(try ModelConfiguration(json: json) == Small.dense, "max_window_layers is the number of layers")
        let error = expectRefusal("window") { _ = try ModelConfiguration(json: edited(json, "max_window_layers", 1)) }
        #expect(error?.location?.contains("sliding_window") == true)
        expectRefusal("window of all layers") {
            _ = try ModelConfiguration(json: edited(edited(moe, "sliding_window", 8), "use_sliding_window", true))
        }
    }

    @Test(arguments: wrongValues.indices) func wrongValuesAreRefused(_ i: Int) throws {
        let (key, value) = wrongValues[i], what = "\(key) = \(value?.text() ?? "absent")"
        let error = expectRefusal(what) { _ = try ModelConfiguration(json: edited(moe, key, value)) }
        // The number of heads is found wrong where it does not fit the key/value heads.
        let isNamed = error?.location?.contains(key) == true || error?.reason?.contains(key) == true
        #expect(isNamed, "\(what): \(error?.description ?? "")")
    }

    @Test func aTypoIsRecognized() throws {
        let json = edited(edited(moe, "num_experts", nil), "num_expert", 3)
        let error = expectRefusal("typo") { _ = try ModelConfiguration(json: json) }
        #expect(error?.remedy == "rename \"num_expert\" to \"num_experts\"")
        #expect(
            expectRefusal("family") { _ = try ModelConfiguration(json: edited(moe, "model_type", "qwen3moe")) }?
                .remedy?.contains("did you mean 'qwen3_moe'") == true)
    }

    @Test(arguments: [JSON.null, [], 3, "x", [:]]) func otherDocumentsAreRefused(_ json: JSON) {
        expectRefusal(json.text()) { _ = try ModelConfiguration(json: json) }
    }

    @Test func shapesOfAPublishedModel() throws {
        let json: JSON = [
            "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768, "intermediate_size": 6144, "norm_topk_prob": true, "rope_theta": 1e6,
        ]
        let configuration = try ModelConfiguration(json: json)
        #expect(configuration.parameterCount == 30_532_122_624)
        #expect(configuration.shape(of: .expertsGateUp(0)) == [128, 1536, 2048])
        #expect(configuration.shape(of: .output(0)) == [2048, 4096])
        #expect(configuration.weights.count == 3 + 48 * 11)
    }
}
