import MartletCPU
import MartletCore
import MartletModel
import MartletTestSupport
import Testing

@Suite struct FilesCheckpointTests {
    private func read(_ checkpoint: Checkpoint, _ weight: Weight) throws -> [Float] {
        let backend = CPUBackend(threads: 1), shape = checkpoint.configuration.shape(of: weight)
        let arena = try backend.makeArena(byteCount: shape.count * 4 + 256)
        let tensor = arena.carve(shape, for: .weights)
        try checkpoint.read(weight, into: tensor, using: backend, checksValues: true)
        var values = [Float](repeating: .nan, count: shape.count)
        values.withUnsafeMutableBytes { backend.download(tensor, into: $0) }
        return values
    }

    @Test(arguments: [Small.moe, Small.dense], [DType.float32, .bfloat16, .float16])
    func everyWeightIsItsStoredTensors(_ configuration: ModelConfiguration, _ dtype: DType) throws {
        let folder = try TemporaryFolder(), path = folder.file("m")
        try Small.write(configuration, to: path, dtype: dtype, shardSize: 600)
        let checkpoint = try Checkpoint(folder: path), stored = try Small.tensors(of: path)
        try checkpoint.validate()
        #expect(checkpoint.configuration == configuration && checkpoint.storedDType == dtype)
        func layer(_ l: Int, _ name: String) -> [Float] { stored["model.layers.\(l).\(name).weight"]?.values ?? [] }
        for weight in checkpoint.weights {
            let experts = 0..<(configuration.experts?.expertCount ?? 0)
            let expected: [Float] =
                switch weight {
                case .embedding: stored["model.embed_tokens.weight"]?.values ?? []
                case .finalNorm: stored["model.norm.weight"]?.values ?? []
                case .head: stored["lm_head.weight"]?.values ?? []
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
                    experts.flatMap { layer(l, "mlp.experts.\($0).gate_proj") + layer(l, "mlp.experts.\($0).up_proj") }
                case .expertsDown(let l): experts.flatMap { layer(l, "mlp.experts.\($0).down_proj") }
                }
            #expect(expected.count == configuration.shape(of: weight).count)
            #expect(try checkpoint.readFloats(weight) == expected, "\(weight)")
            #expect(try read(checkpoint, weight) == expected, "\(weight)")
        }
    }

    /// Fused experts, as [E, rows, columns] and as [E, columns, rows], give what separate ones give, rows by rows too.
    @Test(arguments: [false, true], [DType.float32, .bfloat16]) func fusedExpertsAreRead(
        _ isTransposed: Bool, _ dtype: DType
    ) throws {
        let folder = try TemporaryFolder(), path = folder.file("m")
        try Small.write(to: path, dtype: dtype)
        let separate = try Checkpoint(folder: path)
        var tensors = try Small.tensors(of: path), expected: [Weight: [Float]] = [:]
        for l in [0, 2] {
            for (weight, name) in [(Weight.expertsGateUp(l), "gate_up_proj"), (.expertsDown(l), "down_proj")] {
                let values = try separate.readFloats(weight), shape = Small.moe.shape(of: weight)
                expected[weight] = values
                var stored = values
                let (rows, columns) = (shape[1], shape[2])
                for i in values.indices where isTransposed {
                    let (e, row, column) = (i / (rows * columns), i / columns % rows, i % columns)
                    stored[(e * columns + column) * rows + row] = values[i]
                }
                let extents = isTransposed ? [shape[0], columns, rows] : shape.array
                tensors["model.layers.\(l).mlp.experts.\(name)"] = (dtype, extents, stored)
            }
        }
        tensors = tensors.filter { !$0.key.contains(".experts.") || $0.key.hasSuffix("_proj") }
        try Small.write(tensors, to: path + "/model.safetensors")
        let fused = try Checkpoint(folder: path)
        try fused.validate()
        for (weight, values) in expected {
            #expect(try fused.readFloats(weight) == values)
            #expect(try read(fused, weight) == values)
            let columns = Small.moe.shape(of: weight)[-1]
            #expect(try fused.readFloats(weight, rows: 3..<14) == Array(values[3 * columns..<14 * columns]))
        }
    }

    @Test func oddAlignmentIsRead() throws {
        let folder = try TemporaryFolder(), path = folder.file("m")
        try Small.write(to: path, dtype: .float32)
        let expected = try Checkpoint(folder: path).readFloats(.query(1))
        // One more space in the header moves every tensor to an odd address.
        var bytes = try FileSystem.read(path + "/model.safetensors")
        let length = bytes.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) }
        bytes.insert(UInt8(ascii: " "), at: 8 + Int(length))
        bytes.replaceSubrange(0..<8, with: withUnsafeBytes(of: (length + 1).littleEndian, Array.init))
        try AtomicFile.write(bytes, to: path + "/model.safetensors")
        let moved = try Checkpoint(folder: path)
        #expect(try moved.readFloats(.query(1)) == expected)
        #expect(try read(moved, .query(1)) == expected)
    }

    @Test func extraLayersAndTiedHeadsAreIgnored() throws {
        let folder = try TemporaryFolder(), path = folder.file("m")
        try Small.write(Small.dense, to: path)
        var tensors = try Small.tensors(of: path)
        tensors["model.layers.2.eh_proj.weight"] = (.bfloat16, [1], [1])
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = (.float32, [1], [1])
        try Small.write(tensors, to: path + "/model.safetensors")
        #expect(try Checkpoint(folder: path).unexpectedTensors == [])
        try Checkpoint(folder: path).validate()
    }

    private static let damages: [(name: String, tensor: String, dtype: DType, shape: [Int])] = [
        ("a wrong shape", "model.layers.1.self_attn.q_proj.weight", .bfloat16, [24, 7]),
        ("a transposed projection", "model.layers.1.self_attn.q_proj.weight", .bfloat16, [8, 24]),
        ("another rank", "model.norm.weight", .bfloat16, [1, 8]),
        ("integers", "model.layers.0.input_layernorm.weight", .int32, [8]),
        ("an expert of another size", "model.layers.2.mlp.experts.2.up_proj.weight", .bfloat16, [6, 8]),
        ("a wrong vocabulary", "model.embed_tokens.weight", .bfloat16, [18, 8]),
        ("a bias that would be ignored", "model.layers.0.self_attn.q_proj.bias", .bfloat16, [24]),
        ("an unknown tensor", "visual.patch_embed.weight", .bfloat16, [2]),
        ("an expert too many", "model.layers.0.mlp.experts.3.up_proj.weight", .bfloat16, [5, 8]),
    ]

    @Test(arguments: damages.indices) func wrongTensorsAreRefused(_ i: Int) throws {
        let damage = Self.damages[i], folder = try TemporaryFolder(), path = folder.file("m")
        try Small.write(to: path)
        var tensors = try Small.tensors(of: path)
        let count = damage.shape.reduce(1, *)
        tensors[damage.tensor] = (damage.dtype, damage.shape, [Float](repeating: 1, count: count))
        try Small.write(tensors, to: path + "/model.safetensors")
        let error = expectRefusal(damage.name) { try Checkpoint(folder: path).validate() }
        #expect(error?.description.contains(damage.tensor) == true)
    }

    @Test(arguments: [
        "model.norm.weight", "lm_head.weight", "model.layers.2.mlp.experts.1.down_proj.weight",
        "model.layers.1.mlp.gate_proj.weight",
    ])
    func missingTensorsAreRefused(_ name: String) throws {
        let folder = try TemporaryFolder(), path = folder.file("m")
        try Small.write(to: path)
        var tensors = try Small.tensors(of: path)
        tensors[name] = nil
        try Small.write(tensors, to: path + "/model.safetensors")
        let error = expectRefusal(name) { try Checkpoint(folder: path).validate() }
        #expect(error?.location?.contains(name) == true)
    }

    @Test(arguments: [Float.nan, .infinity]) func weightsThatAreNoNumbersAreRefused(_ bad: Float) throws {
        let folder = try TemporaryFolder(), path = folder.file("m"),
            name = "model.layers.0.mlp.experts.2.up_proj.weight"
        try Small.write(to: path)
        var tensors = try Small.tensors(of: path)
        tensors[name]?.values[39] = bad
        try Small.write(tensors, to: path + "/model.safetensors")
        let checkpoint = try Checkpoint(folder: path)
        #expect(checkpoint.nonFiniteTensors == [name])
        _ = try read(checkpoint, .expertsDown(0))
        #expect(expectRefusal("NaN") { _ = try read(checkpoint, .expertsGateUp(0)) }?.location?.contains(name) == true)
    }

    @Test func foldersThatAreNoModelsAreRefused() throws {
        let folder = try TemporaryFolder()
        expectRefusal("absent") { _ = try Checkpoint(folder: folder.file("absent")) }
        expectRefusal("empty") { _ = try Checkpoint(folder: folder.path) }
        expectRefusal("a file") { _ = try Checkpoint(folder: folder.write("x", to: "file")) }
        try folder.write("{}", to: "adapter_config.json")
        #expect(
            expectRefusal("adapter") { _ = try Checkpoint(folder: folder.path) }?.remedy?.contains("base model") == true
        )
        for config in ["", "{", "[]", "{}", "null", String(repeating: "{\"a\":", count: 9999), #"{"model_type":"#] {
            try folder.write(config, to: "config.json")
            let error = expectRefusal("config \(config.prefix(20))") { _ = try Checkpoint(folder: folder.path) }
            #expect(error?.location?.contains("config.json") == true)
        }
        try folder.write(Small.moe.json(dtype: .bfloat16).text(), to: "config.json")
        expectRefusal("no weights") { _ = try Checkpoint(folder: folder.path) }
    }
}
