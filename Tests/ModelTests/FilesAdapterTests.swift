import Foundation
import MartletCore
import MartletModel
import MartletTestSupport
import Testing

/// The golden adapters that PEFT wrote.
private let goldens = [
    "moe_seed0", "moe_seed1", "moe_first_dense", "moe_every_second", "moe_tied", "moe_rslora", "dense_tied",
    "dense_untied",
]

private typealias Stored = [String: (dtype: DType, shape: [Int], values: [Float])]

private func stored(_ folder: String) throws -> Stored {
    var tensors: Stored = [:]
    for tensor in try SafeTensorsFile(folder + "/adapter_model.safetensors").tensors {
        tensors[tensor.name] = (try #require(tensor.dtype), tensor.shape, try tensor.floats())
    }
    return tensors
}

@Suite struct FilesAdapterTests {
    private func golden(_ name: String) throws -> (folder: String, configuration: ModelConfiguration) {
        let folder = try #require(Bundle.module.resourcePath) + "/ModelGoldens/\(name)"
        return (folder + "/adapter", try ModelConfiguration(json: FileSystem.readJSON(folder + "/config.json")))
    }

    /// The delta of a weight by PEFT's definition from what stands in a fused file.
    private func naiveDelta(_ tensors: Stored, _ module: String, experts e: Int?, scale: Float) throws -> [Float] {
        let prefix = "base_model.model.\(module).lora_"
        let a = try #require(tensors[prefix + "A.weight"]), b = try #require(tensors[prefix + "B.weight"])
        let count = e ?? 1, inputs = a.shape[1], outputs = b.shape[0], rank = a.shape[0] / count
        var delta = [Float](repeating: 0, count: count * outputs * inputs)
        for expert in 0..<count {
            for o in 0..<outputs {
                for k in 0..<rank {
                    let factor = scale * b.values[o * rank * count + k * count + expert]
                    for i in 0..<inputs {
                        delta[(expert * outputs + o) * inputs + i] +=
                            factor * a.values[(expert * rank + k) * inputs + i]
                    }
                }
            }
        }
        return delta
    }

    private func delta(_ adapter: Adapter, _ weight: Weight, _ configuration: ModelConfiguration) -> [Float] {
        let shape = configuration.shape(of: weight)
        var values = [Float](repeating: 0, count: shape.count)
        adapter.addDelta(of: weight, rows: 0..<shape.count / shape[-1], to: &values)
        return values
    }

    private func expectEqual(_ a: [Float], _ b: [Float], _ what: String, tolerance: Float = 2e-6) {
        let size = b.reduce(0) { max($0, $1.magnitude) }
        let worst = zip(a, b).reduce(0) { max($0, ($1.0 - $1.1).magnitude) }
        #expect(a.count == b.count && size > 0 && worst <= tolerance * size, "\(what): \(worst) of \(size)")
    }

    private func expectSameDeltas(_ a: Adapter, _ b: Adapter, _ configuration: ModelConfiguration) {
        #expect(Set(a.matrices.keys) == Set(b.matrices.keys))
        for weight in a.matrices.keys {
            expectEqual(delta(a, weight, configuration), delta(b, weight, configuration), "\(weight)")
        }
    }

    // MARK: PEFT's files

    @Test(arguments: goldens) func peftsFilesComeBackTheSame(_ name: String) throws {
        let (folder, configuration) = try golden(name), temporary = try TemporaryFolder()
        let adapter = try Adapter(folder: folder, for: configuration)
        try adapter.write(to: temporary.path, for: configuration)
        let theirs = try stored(folder), ours = try stored(temporary.path)
        #expect(Set(theirs.keys) == Set(ours.keys))
        for (key, tensor) in theirs {
            #expect(
                ours[key]?.shape == tensor.shape && ours[key]?.values == tensor.values
                    && ours[key]?.dtype == tensor.dtype, "\(key)")
        }
        let config = try FileSystem.readJSON(folder + "/adapter_config.json")
        let ourConfig = try FileSystem.readJSON(temporary.file("adapter_config.json"))
        for key in ["r", "lora_alpha", "use_rslora", "lora_dropout", "peft_type", "task_type", "bias", "use_dora"] {
            #expect(ourConfig[key] == config[key], "\(key)")
        }
        for key in ["target_modules", "target_parameters"] {
            #expect(
                Set(ourConfig[key]?.array?.compactMap(\.string) ?? [])
                    == Set(config[key]?.array?.compactMap(\.string) ?? []), "\(key)")
        }
    }

    @Test(arguments: goldens) func deltasFollowPEFTsDefinition(_ name: String) throws {
        let (folder, configuration) = try golden(name), tensors = try stored(folder)
        let adapter = try Adapter(folder: folder, for: configuration), scale = adapter.settings.scale
        let query = try naiveDelta(tensors, "model.layers.0.self_attn.q_proj", experts: nil, scale: scale)
        expectEqual(delta(adapter, .query(0), configuration), query, "q_proj")
        guard let layer = configuration.isSparse.firstIndex(of: true), let experts = configuration.experts else {
            return
        }
        let module = "model.layers.\(layer).mlp.experts"
        let gateUp = try naiveDelta(tensors, module + ".base_layer", experts: experts.expertCount, scale: scale)
        expectEqual(delta(adapter, .expertsGateUp(layer), configuration), gateUp, "gate_up_proj")
        let down = try naiveDelta(tensors, module, experts: experts.expertCount, scale: scale)
        expectEqual(delta(adapter, .expertsDown(layer), configuration), down, "down_proj")
    }

    // MARK: Round trips

    @Test(arguments: [Small.moe, Small.dense], [false, true])
    func bothLayoutsComeBackTheSame(_ configuration: ModelConfiguration, _ usesRSLoRA: Bool) throws {
        let adapter = Small.adapter(configuration, usesRSLoRA: usesRSLoRA)
        for layout in Adapter.Layout.allCases {
            let folder = try TemporaryFolder()
            try adapter.write(to: folder.path, for: configuration, layout: layout)
            let back = try Adapter(folder: folder.path, for: configuration)
            #expect(back.matrices == adapter.matrices)
            #expect((back.settings.scale - adapter.settings.scale).magnitude <= 1e-6 * adapter.settings.scale)
            // What PEFT would scale wrongly is not written.
            if layout == .perExpert {
                #expect(!back.settings.usesRSLoRA)
            } else {
                #expect(back.settings == adapter.settings)
            }
        }
    }

    @Test func perExpertKeysAndHalves() throws {
        let folder = try TemporaryFolder(), adapter = Small.adapter()
        try adapter.write(to: folder.path, for: Small.moe, layout: .perExpert)
        let tensors = try stored(folder.path), pair = try #require(adapter.matrices[.expertsGateUp(2)])
        let key = "base_model.model.model.layers.2.mlp.experts.1.up_proj.lora_"
        #expect(tensors[key + "A.weight"]?.shape == [3, 8] && tensors[key + "B.weight"]?.shape == [5, 3])
        #expect(tensors[key + "A.weight"]?.values == Array(pair.a[3 * 8..<2 * 3 * 8]))
        #expect(tensors[key + "B.weight"]?.values == Array(pair.b[(10 + 5) * 3..<(10 + 10) * 3]))
        let config = try FileSystem.readJSON(folder.file("adapter_config.json"))
        #expect(
            config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"])
        #expect(config["target_parameters"] == ["mlp.down_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight"])
    }

    @Test func brainFloatsAreRounded() throws {
        let folder = try TemporaryFolder(), adapter = Small.adapter()
        try adapter.write(to: folder.path, for: Small.moe, dtype: .bfloat16)
        #expect(try stored(folder.path).values.allSatisfy { $0.dtype == .bfloat16 })
        let back = try Adapter(folder: folder.path, for: Small.moe)
        for (weight, pair) in adapter.matrices {
            #expect(back.matrices[weight]?.a == pair.a.map { Float(bfloat16Bits: $0.bfloat16Bits) })
        }
    }

    /// With one target only, the key says nothing of which it is.
    @Test(arguments: Adapter.Layout.allCases, [Weight.expertsGateUp(0), .expertsDown(0)])
    func oneExpertTarget(_ layout: Adapter.Layout, _ target: Weight) throws {
        let folder = try TemporaryFolder(),
            other: Weight = target == .expertsDown(0) ? .expertsGateUp(0) : .expertsDown(0)
        let adapter = Small.adapter { $0 == target }
        try adapter.write(to: folder.path, for: Small.moe, layout: layout)
        if layout == .fused { #expect(try stored(folder.path).keys.allSatisfy { !$0.contains("base_layer") }) }
        let back = try Adapter(folder: folder.path, for: Small.moe)
        #expect(back.matrices[target] == adapter.matrices[target])
        // Zero down matrices accompany separate gate and up.
        #expect(back.matrices[other]?.b.allSatisfy { $0 == 0 } ?? true)
        #expect(try FileSystem.readJSON(folder.file("adapter_config.json"))["r"] == 3)
    }

    // MARK: Other writers' layouts

    /// Takes a fused file apart, changes tensors, and reads it.
    private func reread(
        _ adapter: Adapter, layout: Adapter.Layout = .fused, columns: Adapter.FusedColumns = .rankMajor,
        settings: [String: JSON?] = [:], _ change: (inout Stored) -> Void = { _ in }
    ) throws -> Adapter {
        let folder = try TemporaryFolder()
        try adapter.write(to: folder.path, for: Small.moe, layout: layout)
        var tensors = try stored(folder.path)
        change(&tensors)
        try Small.write(tensors, to: folder.file("adapter_model.safetensors"))
        var json = try FileSystem.readJSON(folder.file("adapter_config.json"))
        for (key, value) in settings { json = edited(json, key, value) }
        try AtomicFile.write(json.text(), to: folder.file("adapter_config.json"))
        return try Adapter(folder: folder.path, for: Small.moe, fusedColumns: columns)
    }

    /// PEFT before 0.19: A of [E r, O] and B of [I, r E] stand for each other's roles.
    @Test(arguments: [true, false]) func swappedPairsAreRead(_ saysVersion: Bool) throws {
        let adapter = Small.adapter(), e = 3, r = 3
        let back = try reread(adapter, settings: ["peft_version": saysVersion ? "0.18.0" : nil]) {
            tensors in
            for (weight, module) in [(Weight.expertsGateUp(0), "base_layer."), (.expertsDown(0), "")] {
                guard let pair = adapter.matrices[weight] else { continue }
                let o = pair.outputCount, i = pair.inputCount
                var a = [Float](repeating: 0, count: e * r * o), b = [Float](repeating: 0, count: i * r * e)
                for expert in 0..<e {
                    for k in 0..<r {
                        for row in 0..<o { a[(expert * r + k) * o + row] = pair.b[(expert * o + row) * r + k] }
                        for column in 0..<i {
                            b[column * r * e + k * e + expert] = pair.a[(expert * r + k) * i + column]
                        }
                    }
                }
                let key = "base_model.model.model.layers.0.mlp.experts.\(module)lora_"
                tensors[key + "A.weight"] = (.float32, [e * r, o], a)
                tensors[key + "B.weight"] = (.float32, [i, e * r], b)
            }
        }
        #expect(back.matrices == adapter.matrices)
    }

    @Test func expertMajorColumnsAreReadWhenAskedFor() throws {
        let adapter = Small.adapter(), e = 3, r = 3
        let permute: (inout Stored) -> Void = { tensors in
            for (key, tensor) in tensors where key.contains("experts") && key.hasSuffix("lora_B.weight") {
                for i in tensor.values.indices {
                    let (row, k, expert) = (i / (r * e), i / e % r, i % e)
                    tensors[key]?.values[row * r * e + expert * r + k] = tensor.values[i]
                }
            }
        }
        #expect(try reread(adapter, columns: .expertMajor, permute).matrices == adapter.matrices)
        #expect(try reread(adapter, permute).matrices != adapter.matrices)
    }

    /// Gate and up with A of their own become one pair of twice the rank, at the same scale; also when written again.
    @Test(arguments: [false, true]) func separateAsBecomeABlockDiagonal(_ usesRSLoRA: Bool) throws {
        let adapter = Small.adapter(usesRSLoRA: usesRSLoRA)
        let key = "base_model.model.model.layers.0.mlp.experts."
        var expected: [Float] = []
        let back = try reread(
            adapter, layout: .perExpert, settings: ["use_rslora": .bool(usesRSLoRA), "lora_alpha": 5]
        ) { tensors in
            for e in 0..<3 { tensors["\(key)\(e).up_proj.lora_A.weight"]?.values[7] += 1 }
            for e in 0..<3 {
                for name in ["gate_proj", "up_proj"] {
                    let a = tensors["\(key)\(e).\(name).lora_A.weight"]?.values ?? []
                    let b = tensors["\(key)\(e).\(name).lora_B.weight"]?.values ?? []
                    for o in 0..<5 {
                        for i in 0..<8 {
                            expected.append(
                                adapter.settings.scale * (0..<3).reduce(0) { $0 + b[o * 3 + $1] * a[$1 * 8 + i] })
                        }
                    }
                }
            }
        }
        #expect(
            back.matrices[.expertsGateUp(0)]?.aShape == [3, 6, 8]
                && back.matrices[.expertsGateUp(0)]?.bShape == [3, 10, 6])
        #expect(back.matrices[.expertsGateUp(2)] == adapter.matrices[.expertsGateUp(2)])
        #expect(back.settings == adapter.settings)
        expectEqual(delta(back, .expertsGateUp(0), Small.moe), expected, "block diagonal")
        for layout in Adapter.Layout.allCases {
            let folder = try TemporaryFolder()
            try back.write(to: folder.path, for: Small.moe, layout: layout)
            let again = try Adapter(folder: folder.path, for: Small.moe)
            #expect(again.settings.rank == 6)
            expectSameDeltas(again, back, Small.moe)
        }
    }

    /// Ranks and alphas of single modules: the scale goes into B.
    @Test func patternsAreFollowed() throws {
        let adapter = Small.adapter()
        let alphas: JSON = ["k_proj": 10, ".*\\.gate_up_proj": 15, "^model.layers.1.self_attn.v_proj$": 20]
        let back = try reread(adapter, settings: ["alpha_pattern": alphas])
        for (weight, pair) in adapter.matrices {
            let factor: Float =
                switch weight {
                case .key: 2
                case .expertsGateUp: 3
                case .value(1): 4
                default: 1
                }
            #expect(
                back.matrices[weight]?.a == pair.a && back.matrices[weight]?.b == pair.b.map { $0 * factor },
                "\(weight)")
        }
        expectRefusal("a regular expression") {
            _ = try reread(adapter, settings: ["alpha_pattern": ["(q|k)_proj": 2]])
        }
        expectRefusal("a rank that is not there") {
            _ = try reread(adapter, settings: ["rank_pattern": ["q_proj": 7]])
        }
    }

    @Test func theDefaultAdapterNameIsUnderstood() throws {
        let adapter = Small.adapter()
        let back = try reread(adapter) { tensors in
            for (key, tensor) in tensors {
                tensors[key] = nil
                tensors[key.replacingOccurrences(of: ".weight", with: ".default.weight")] = tensor
            }
        }
        #expect(back == adapter)
    }

    // MARK: Refusals

    private static let query = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    private static let experts = "base_model.model.model.layers.0.mlp.experts."

    private static let changes: [(name: String, layout: Adapter.Layout, key: String, shape: [Int]?)] = [
        ("no B", .fused, query + "B.weight", nil), ("no A", .fused, query + "A.weight", nil),
        ("no expert A", .fused, experts + "lora_A.weight", nil),
        ("another rank", .fused, query + "A.weight", [4, 8]), ("other inputs", .fused, query + "A.weight", [3, 9]),
        ("other outputs", .fused, query + "B.weight", [25, 3]), ("transposed", .fused, query + "A.weight", [8, 3]),
        ("another layer", .fused, "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", [3, 8]),
        ("no prefix", .fused, "model.layers.1.self_attn.q_proj.lora_A.weight", [3, 8]),
        ("a whole weight", .fused, "base_model.model.lm_head.weight", [17, 8]),
        ("an embedding", .fused, "base_model.model.model.embed_tokens.lora_embedding_A", [3, 17]),
        ("a magnitude", .fused, "base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector", [24]),
        ("an expert missing", .perExpert, experts + "2.up_proj.lora_A.weight", nil),
        ("an expert of another rank", .perExpert, experts + "2.up_proj.lora_B.weight", [5, 2]),
        ("experts of another count", .fused, experts + "lora_A.weight", [12, 5]),
        ("experts of another width", .fused, experts + "base_layer.lora_B.weight", [11, 9]),
    ]

    @Test(arguments: changes.indices) func wrongTensorsAreRefused(_ i: Int) throws {
        let change = Self.changes[i]
        let error = expectRefusal(change.name) {
            _ = try reread(Small.adapter(), layout: change.layout) { tensors in
                tensors[change.key] = change.shape.map { (.float32, $0, [Float](repeating: 1, count: $0.reduce(1, *))) }
            }
        }
        let module = change.key.replacingOccurrences(of: "lora_B.weight", with: "").replacingOccurrences(
            of: "lora_A.weight", with: "")
        #expect(error?.location?.contains(module) == true, "\(error?.description ?? "")")
    }

    @Test func theRouterAndUnknownModulesAreRefused() throws {
        for module in ["model.layers.0.mlp.gate", "model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp.gate_proj"] {
            let error = expectRefusal(module) {
                _ = try reread(Small.adapter()) { tensors in
                    tensors["base_model.model.\(module).lora_A.weight"] = (
                        .float32, [3, 8], [Float](repeating: 1, count: 24)
                    )
                    tensors["base_model.model.\(module).lora_B.weight"] = (
                        .float32, [3, 3], [Float](repeating: 1, count: 9)
                    )
                }
            }
            #expect(error?.location?.contains(module) == true)
        }
    }

    @Test(arguments: [Float.nan, .infinity]) func valuesThatAreNoNumbersAreRefused(_ bad: Float) throws {
        let error = expectRefusal("NaN") {
            _ = try reread(Small.adapter()) { $0[Self.query + "B.weight"]?.values[5] = bad }
        }
        #expect(error?.location?.contains(Self.query) == true)
    }

    private static let settings: [(key: String, value: JSON?)] = [
        ("r", nil), ("r", 0), ("r", "3"), ("r", 2.5), ("r", .integer(.max)), ("lora_alpha", nil), ("lora_alpha", 0),
        ("lora_alpha", "5"),
        ("lora_alpha", .number(1e300)), ("lora_dropout", 1), ("lora_dropout", -0.1), ("use_rslora", "yes"),
        ("use_dora", true),
        ("lora_bias", true), ("bias", "all"), ("fan_in_fan_out", true), ("modules_to_save", ["lm_head"]),
        ("peft_type", "IA3"),
        ("peft_type", nil), ("layer_replication", [[0, 1]]), ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa_niter_4"),
        ("rank_pattern", ["q_proj": 0]), ("rank_pattern", ["q_proj": 2.5]), ("rank_pattern", [3]),
        ("alpha_pattern", ["q_proj": "x"]),
        ("alpha_pattern", ["q_[": 1]), ("alpha_pattern", ["": 1]), ("alpha_pattern", ["q_proj\\": 1]), ("r", 4),
    ]

    @Test(arguments: settings.indices) func wrongSettingsAreRefused(_ i: Int) throws {
        let (key, value) = Self.settings[i]
        let error = expectRefusal("\(key) = \(value?.text() ?? "absent")") {
            _ = try reread(Small.adapter(), settings: [key: value])
        }
        #expect(error?.location?.contains("adapter_") == true)
    }

    @Test func foldersThatAreNoAdaptersAreRefused() throws {
        let folder = try TemporaryFolder()
        expectRefusal("empty") { _ = try Adapter(folder: folder.path, for: Small.moe) }
        for config in ["", "[]", "{", "{}", String(repeating: "[", count: 9999)] {
            try folder.write(config, to: "adapter_config.json")
            expectRefusal(config) { _ = try Adapter(folder: folder.path, for: Small.moe) }
        }
        try Small.adapter().write(to: folder.path, for: Small.moe)
        expectRefusal("another model") { _ = try Adapter(folder: folder.path, for: Small.dense) }
        try FileSystem.remove(folder.file("adapter_model.safetensors"))
        expectRefusal("no tensors") { _ = try Adapter(folder: folder.path, for: Small.moe) }
        try Small.write([:], to: folder.file("adapter_model.safetensors"))
        expectRefusal("no pairs") { _ = try Adapter(folder: folder.path, for: Small.moe) }
    }

    @Test func anAdapterOfAnotherModelIsNotWritten() throws {
        let folder = try TemporaryFolder()
        expectRefusal("misfit") { try Small.adapter(Small.moe).write(to: folder.file("a"), for: Small.dense) }
        expectRefusal("in the way") { try Small.adapter().write(to: folder.write("x", to: "file"), for: Small.moe) }
    }
}
