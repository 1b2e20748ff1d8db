import MartletCore
import MartletModel
import MartletTestSupport
import Testing

@Suite struct FilesExportTests {
    /// W + scale B A, rounded once, in every dtype and sharded; and reading it again finds nothing else.
    @Test(arguments: [Small.moe, Small.dense], [DType.float32, .bfloat16, .float16, nil] as [DType?])
    func mergingAddsTheDeltas(_ configuration: ModelConfiguration, _ dtype: DType?) throws {
        let folder = try TemporaryFolder(), path = folder.file("merged")
        try Small.write(configuration, to: folder.file("base"))
        try folder.write("tokens", to: "base/tokenizer.json")
        try folder.write("secret", to: "base/.env")
        let base = try Checkpoint(folder: folder.file("base")), adapter = Small.adapter(configuration)
        let merged = MergedCheckpoint(base: base, adapter: adapter, dtype: dtype)
        try merged.write(to: path, maximumShardSize: 2000)
        #expect(try FileSystem.read(path + "/tokenizer.json") == Array("tokens".utf8))
        #expect(!FileSystem.exists(path + "/.env") && FileSystem.exists(path + "/model.safetensors.index.json"))
        let written = try Checkpoint(folder: path), stored = dtype ?? .bfloat16
        #expect(written.configJSON["torch_dtype"]?.string == stored.torchName)
        #expect(written.configuration == configuration && written.storedDType == stored)
        for weight in configuration.weights {
            var expected = try base.readFloats(weight)
            let shape = configuration.shape(of: weight), inputs = shape[-1]
            if let pair = adapter.matrices[weight] {
                for row in 0..<shape.count / inputs {
                    for i in 0..<inputs {
                        let e = row / pair.outputCount
                        let sum = (0..<3).reduce(Float(0)) {
                            $0 + pair.b[row * 3 + $1] * pair.a[(e * 3 + $1) * inputs + i]
                        }
                        expected[row * inputs + i] += Float(5.0 / 3) * sum
                    }
                }
            }
            let found = try written.readFloats(weight)
            let tolerance: Float = stored == .float32 ? 1e-6 : stored == .float16 ? 0x1p-11 : 0x1p-8
            let isClose = zip(found, expected).allSatisfy {
                ($0 - $1).magnitude <= tolerance * max($1.magnitude, 1e-2) * 1.01
            }
            #expect(isClose, "\(weight)")
        }
        let verification = try merged.verify(path)
        #expect(verification.tensorCount == written.tensors.tensors.count)
        #expect((verification.largestRounding == 0) == (stored == .float32))
    }

    @Test func verificationFindsOneWrongValue() throws {
        let folder = try TemporaryFolder(), path = folder.file("merged"),
            name = "model.layers.2.mlp.experts.1.up_proj.weight"
        try Small.write(to: folder.file("base"))
        let merged = MergedCheckpoint(base: try Checkpoint(folder: folder.file("base")), adapter: Small.adapter())
        try merged.write(to: path)
        _ = try merged.verify(path)
        var tensors = try Small.tensors(of: path)
        tensors[name]?.values[3] += 0.25
        try Small.write(tensors, to: path + "/model.safetensors")
        #expect(expectRefusal("a changed value") { _ = try merged.verify(path) }?.location?.contains(name) == true)
    }

    @Test func weightsTrainedWholeReplaceTheOriginals() throws {
        let folder = try TemporaryFolder(), path = folder.file("out")
        try Small.write(to: folder.file("base"))
        let base = try Checkpoint(folder: folder.file("base"))
        func trained(_ weight: Weight) -> [Float]? {
            switch weight {
            case .expertsGateUp(2), .finalNorm:
                (0..<Small.moe.shape(of: weight).count).map { Float($0 % 200) }
            default: nil
            }
        }
        let export = MergedCheckpoint(base: base, trained: { (weight) throws(MartletError) in trained(weight) })
        try export.write(to: path)
        let written = try Checkpoint(folder: path)
        for weight in Small.moe.weights {
            #expect(try written.readFloats(weight) == trained(weight) ?? base.readFloats(weight), "\(weight)")
        }
        #expect(try export.verify(path).largestRounding == 0)
    }

    @Test func whatCannotBeExportedIsRefusedAndLeavesNothing() throws {
        let folder = try TemporaryFolder(), path = folder.file("out")
        try Small.write(to: folder.file("base"))
        let base = try Checkpoint(folder: folder.file("base"))
        func refuses(_ what: String, _ export: MergedCheckpoint) throws {
            expectRefusal(what) { try export.write(to: path) }
            #expect(try folder.names == ["base"], "\(what)")
        }
        try refuses("integers", MergedCheckpoint(base: base, dtype: .int32))
        try refuses("another model's adapter", MergedCheckpoint(base: base, adapter: Small.adapter(Small.dense)))
        try refuses("too few values", MergedCheckpoint(base: base, trained: { _ throws(MartletError) in [1, 2] }))
        var broken = Small.adapter()
        broken.matrices[.query(1)]?.b[0] = .nan
        try refuses("NaN", MergedCheckpoint(base: base, adapter: broken))
        try FileSystem.makeFolder(path)
        try folder.write("x", to: "out/x")
        expectRefusal("taken") { try MergedCheckpoint(base: base).write(to: path) }
        #expect(try FileSystem.list(path) == ["x"])
    }

    @Test func randomModelsFollowTheirSeed() throws {
        let folder = try TemporaryFolder()
        func model(_ name: String, seed: UInt64, shardSize: Int = 1 << 30) throws -> Checkpoint {
            try RandomCheckpoint(configuration: Small.moe, seed: seed, standardDeviation: 0.1, dtype: .float32)
                .write(to: folder.file(name), maximumShardSize: shardSize)
            return try Checkpoint(folder: folder.file(name))
        }
        let first = try model("a", seed: 1), again = try model("b", seed: 1, shardSize: 500),
            other = try model("c", seed: 2)
        try first.validate()
        #expect(first.configuration == Small.moe && first.configJSON["initializer_range"] == 0.1)
        for weight in Small.moe.weights {
            let values = try first.readFloats(weight)
            #expect(try again.readFloats(weight) == values)
            guard !weight.isNorm else {
                #expect(values.allSatisfy { $0 == 1 })
                continue
            }
            #expect(try other.readFloats(weight) != values)
        }
        #expect(try first.readFloats(.query(0)) != first.readFloats(.query(1)))
        func deviation(_ weights: [Weight]) throws -> Float {
            let values = try weights.flatMap { try first.readFloats($0) }
            return (values.reduce(0) { $0 + $1 * $1 } / Float(values.count)).squareRoot()
        }
        let wide = try deviation([.embedding, .query(0), .query(1), .expertsGateUp(0), .expertsGateUp(2)])
        let narrow = try deviation([.output(0), .output(1), .output(2), .down(1), .expertsDown(0), .expertsDown(2)])
        #expect(abs(wide - 0.1) < 0.01 && abs(narrow - 0.1 / Float(6).squareRoot()) < 0.005)
    }
}
