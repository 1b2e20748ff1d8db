import Foundation
import Martlet
import MartletCPU
import MartletCore
import MartletModel
import MartletTestSupport
import Testing

/// The verbs on a tiny model made by `init`: what one verb writes, the next one reads.
@Suite struct VerbsTests {
    private let home: TemporaryFolder
    private let model: String

    init() throws {
        home = try TemporaryFolder()
        model = home.file("model")
        var settings = Initialization.Settings()
        (settings.layers, settings.hidden, settings.heads, settings.keyValueHeads, settings.headSize) = (2, 16, 2, 1, 8)
        (settings.experts, settings.expertsPerToken, settings.expertInner, settings.context) = (3, 2, 12, 128)
        (settings.standardDeviation, settings.dtype, settings.seed) = (0.3, .float32, 5)
        _ = try Initialization.run(into: model, settings: settings)
    }

    /// An adapter that changes the answers: B is not zero.
    private func makeAdapter() throws -> String {
        let configuration = try Checkpoint(folder: model).configuration
        let settings = LoRASettings(rank: 2, alpha: 4)
        var random = RandomStream(seed: 1), matrices: [Weight: LoRAMatrices] = [:]
        for layer in 0..<configuration.layerCount {
            for target in LoRATarget.allCases where configuration.weights.contains(target.weight(layer: layer)) {
                let shape = configuration.shape(of: target.weight(layer: layer)).array, lead = Array(shape.dropLast(2))
                let a = lead + [2, shape[shape.count - 1]], b = lead + [shape[shape.count - 2], 2]
                func values(_ shape: [Int]) -> [Float] { (0..<shape.reduce(1, *)).map { _ in random.normal() * 0.2 } }
                matrices[target.weight(layer: layer)] = LoRAMatrices(a: values(a), aShape: a, b: values(b), bShape: b)
            }
        }
        let adapter = Adapter(
            settings: AdapterSettings(rank: settings.rank, alpha: settings.alpha, baseModel: model), matrices: matrices)
        try adapter.write(to: home.file("adapter"), for: configuration)
        return home.file("adapter")
    }

    @Test func aNewModelIsWholeAndSpeaksChatML() throws {
        let inspection = try Inspection.of(model)
        #expect(inspection.problems.isEmpty)
        let json = try JSON(parsing: inspection.json)
        #expect(json["config"]?["model_type"]?.string == "qwen3_moe")
        // 256 bytes and three special tokens.
        #expect(json["config"]?["vocab_size"]?.integer == 259)
        let generator = try TextGenerator(model: model, context: 64)
        #expect(generator.hasChatTemplate)
        let prompt = try generator.prompt(for: [.init(role: "system", content: "S"), .init(role: "user", content: "U")])
        #expect(prompt == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n")
    }

    @Test func theSameSeedGivesTheSameModel() throws {
        for name in ["a", "b"] {
            var settings = Initialization.Settings()
            (settings.layers, settings.hidden, settings.denseInner, settings.seed) = (1, 8, 8, 9)
            _ = try Initialization.run(into: home.file(name), settings: settings)
        }
        let files = ["a", "b"].map { home.file($0 + "/model.safetensors") }
        #expect(try FileSystem.read(files[0]) == FileSystem.read(files[1]))
    }

    @Test func aSplitPromptGivesTheSameTextAsAWholeOne() throws {
        let generator = try TextGenerator(model: model, context: 100)
        let first = try generator.generate("Once upon", maxTokens: 12)
        #expect(first.tokens.count == 12 || first.end == .endToken)
        var pieces = ""
        let again = try generator.generate("Once upon", maxTokens: 12) { piece in
            pieces += piece
            return true
        }
        #expect(again.tokens == first.tokens && pieces == first.text)
        // What the cache gives, step by step, is what the model gives for the whole text at once.
        let prompt = Array("Once upon".utf8).map(Int32.init)
        #expect(first.promptTokenCount == prompt.count)
        try #expect(greedy(after: first.tokens.prefix(5), prompt: "Once upon") == first.tokens[5])
    }

    /// The likeliest token after prompt and tokens, from all logits of one pass.
    private func greedy(after tokens: ArraySlice<Int32>, prompt: String) throws -> Int32 {
        let ids = try Tokenization(text: prompt, model: model).ids + tokens
        try AtomicFile.write("\(ids)", to: home.file("ids.json"))
        _ = try LogitFile.write(model: model, tokensFile: home.file("ids.json"), to: home.file("logits.safetensors"))
        let logits = try #require(try SafeTensorsFile(home.file("logits.safetensors"))["logits"])
        let last = try logits.floats().suffix(259)
        return Int32(try #require(last.firstIndex(of: last.max() ?? 0)) - last.startIndex)
    }

    @Test func generationStopsWhereItMust() throws {
        let generator = try TextGenerator(model: model, context: 20)
        let full = try generator.generate("0123456789", maxTokens: 100)
        #expect(full.end == .context || full.end == .endToken)
        let stopped = try generator.generate("01", maxTokens: 10) { _ in false }
        #expect(stopped.end == .stopped || stopped.text.isEmpty)
        for body in [
            { try generator.generate("", maxTokens: 3) },
            { try generator.generate("012345678901234567890123", maxTokens: 3) },
        ] {
            let error = #expect(throws: MartletError.self) { _ = try body() }
            #expect(error?.remedy != nil)
        }
        #expect(throws: MartletError.self) { try TextGenerator(model: model, context: 1000) }
    }

    @Test func lossOfARandomModelIsNearThatOfChance() throws {
        try AtomicFile.write("{\"text\": \"a small text of some letters\"}\n", to: home.file("text.jsonl"))
        var settings = Evaluation.Settings()
        settings.maxLength = 40
        let plain = try Evaluation.run(model: model, dataset: [home.file("text.jsonl")], settings: settings)
        #expect(plain.exampleCount == 1 && plain.tokenCount == 29 && plain.targetCount == 28)
        #expect(plain.loss > 3 && plain.loss < 12)
        let adapted = try Evaluation.run(
            model: model, dataset: [home.file("text.jsonl")], adapter: makeAdapter(), settings: settings)
        #expect((adapted.loss - plain.loss).magnitude > 0.01)
        settings.loss = "everything"
        let error = #expect(throws: MartletError.self) {
            try Evaluation.run(model: model, dataset: [home.file("text.jsonl")], settings: settings)
        }
        #expect(error?.remedy != nil)
    }

    @Test func mergingKeepsTheAnswers() throws {
        let adapter = try makeAdapter()
        let merge = try Merge.run(model: model, adapter: adapter, into: home.file("merged"), dtype: .float32)
        #expect(merge.difference.relative < 1e-4)
        #expect(merge.effect.relative > 0.05)
        let halved = try Merge.run(model: model, adapter: adapter, into: home.file("bf16"), dtype: .bfloat16)
        #expect(halved.difference.relative > merge.difference.relative)
        #expect(try Inspection.of(home.file("bf16")).problems.isEmpty)
        // The tokenizer went along: the merged model generates by itself what base and adapter generate together.
        let together = try TextGenerator(model: model, adapter: adapter, context: 32).generate("Hello", maxTokens: 8)
        let alone = try TextGenerator(model: home.file("merged"), context: 32).generate("Hello", maxTokens: 8)
        #expect(together.tokens == alone.tokens)
        let error = #expect(throws: MartletError.self) {
            try Merge.run(model: model, adapter: adapter, into: home.file("merged"))
        }
        #expect(error?.problem == "the output folder is taken")
    }

    @Test func adaptersChangeTheirLayout() throws {
        let adapter = try makeAdapter()
        _ = try AdapterExport.run(adapter: adapter, model: model, into: home.file("split"), layout: .perExpert)
        let inspection = try JSON(parsing: Inspection.of(home.file("split")).json)
        #expect(inspection["layout"]?.string == "per_expert")
        #expect(try JSON(parsing: Inspection.of(adapter).json)["layout"]?.string == "fused")
        _ = try AdapterExport.run(adapter: home.file("split"), model: model, into: home.file("back"), layout: .fused)
        let configuration = try Checkpoint(folder: model).configuration
        let first = try Adapter(folder: adapter, for: configuration),
            last = try Adapter(folder: home.file("back"), for: configuration)
        let weight = Weight.expertsDown(1)
        var mine = [Float](repeating: 0, count: 12), theirs = mine
        first.addDelta(of: weight, rows: 3..<4, to: &mine)
        last.addDelta(of: weight, rows: 3..<4, to: &theirs)
        #expect(mine.contains { $0 != 0 } && mine == theirs)
        #expect(throws: MartletError.self) {
            try AdapterExport.run(adapter: adapter, model: model, into: home.file("x"), layout: .merged)
        }
    }

    @Test func inspectionTellsWhatIsBroken() throws {
        let config = try FileSystem.read(model + "/config.json")
        let text = String(decoding: config, as: UTF8.self)
        let wider = text.replacing("\"head_dim\": 8", with: "\"head_dim\": 10")
        #expect(wider != text)
        try AtomicFile.write(wider, to: model + "/config.json")
        #expect(try Inspection.of(model).problems.count >= 2)
        let error = #expect(throws: MartletError.self) { try Inspection.of(home.file("nothing")) }
        #expect(error?.remedy != nil)
    }

    @Test func aDatasetIsShownAsTheModelSeesIt() throws {
        let row = """
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}

            """
        try AtomicFile.write(row, to: home.file("chat.jsonl"))
        var settings = Inspection.Settings()
        settings.model = model
        let rows = try Inspection.of(home.file("chat.jsonl"), settings: settings).rows
        #expect(rows.count == 1)
        // "Ho" and the token that ends the turn.
        #expect(rows.first?.trainedCount == 3)
        #expect(rows.first?.pieces.filter(\.isTrained).map(\.text) == ["Ho<|im_end|>"])
        let error = #expect(throws: MartletError.self) { try Inspection.of(home.file("chat.jsonl")) }
        #expect(error?.remedy == "give --model FOLDER")
    }

    @Test func stepsAreMeasured() throws {
        var settings = StepBenchmark.Settings()
        (settings.model, settings.tokens, settings.tokenCount) = (model, Array(0..<8), 8)
        (settings.rank, settings.steps, settings.warmup) = (2, 2, 0)
        settings.compute = Compute(device: .cpu, threads: 1)
        let result = try StepBenchmark.run(settings)
        let json = try JSON(parsing: result.json)
        #expect(json["losses"]?.array?.count == 2 && (json["tokens_per_second"]?.number ?? 0) > 0)
        // A second step on the same tokens has learned from the first.
        #expect(result.losses[1] < result.losses[0])
        for change in [{ $0.tokenCount = 9 }, { $0.profiles = true }] as [(inout StepBenchmark.Settings) -> Void] {
            var wrong = settings
            change(&wrong)
            let error = #expect(throws: MartletError.self) { try StepBenchmark.run(wrong) }
            #expect(error?.remedy != nil)
        }
    }

    @Test func sizesThatCannotBeAreRefused() throws {
        for change in [
            { $0.layers = 0 }, { $0.keyValueHeads = 3 }, { $0.headSize = 7 }, { $0.vocabulary = 100 },
            { ($0.experts, $0.expertsPerToken) = (2, 3) }, { $0.standardDeviation = 0 }, { $0.context = 1 },
        ] as [(inout Initialization.Settings) -> Void] {
            var settings = Initialization.Settings()
            change(&settings)
            let error = #expect(throws: MartletError.self) {
                try Initialization.run(into: home.file("no"), settings: settings)
            }
            #expect(error?.remedy != nil)
            #expect(!FileSystem.exists(home.file("no")))
        }
    }
}

@Suite struct DoctorTests {
    /// What the doctor does on a GPU, on the CPU backend with copies as late as they may be.
    @Test func whatWaitsInHostMemoryIsTheSame() throws {
        let backend = CPUBackend(threads: 2)
        backend.copiesLate = true
        let verdict = try Patient(backend: backend).placesVerdict()
        #expect(verdict.isSound, "\(verdict.detail)")
    }

    @Test func thisMachineIsSound() throws {
        let home = try TemporaryFolder()
        let doctor = try Doctor.examine(folder: home.path)
        #expect(doctor.isSound, "\(doctor)")
        // And the ops on a GPU where there is one.
        #expect(doctor.checks.count >= 8)
        #expect(!Doctor.disk(home.file("nowhere")).isSound)
    }

    @Test func anOpAloneIsExamined() throws {
        let doctor = try Doctor.examine(ops: ["swiGLU"])
        #expect(doctor.isSound && doctor.checks.count >= 2, "\(doctor)")
        #expect(doctor.checks.allSatisfy { !$0.detail.contains("experts") || $0.name == "GPU" })
        let typo = expectRefusal("a typo") { _ = try Doctor.examine(ops: ["swiglu"]) }
        #expect(typo?.remedy == "did you mean 'swiGLU'?")
    }

    /// Whole models on the CPU against transformers and PEFT, as `--goldens` does on any device; and a changed model is found out.
    @Test func goldensAreHeldAgainst() throws {
        let tests = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        let golden = tests.appending(path: "ModelTests/ModelGoldens/moe_first_dense").path
        let compute = Compute(device: .cpu, threads: 1)
        let doctor = try Doctor.examine(goldens: golden, compute: compute)
        #expect(doctor.isSound && doctor.checks.count == 1, "\(doctor)")

        let home = try TemporaryFolder(), copy = home.file("golden")
        try FileManager.default.copyItem(atPath: golden, toPath: copy)
        let config = try String(contentsOfFile: copy + "/config.json", encoding: .utf8)
        try config.replacing("\"norm_topk_prob\": true", with: "\"norm_topk_prob\": false")
            .write(toFile: copy + "/config.json", atomically: false, encoding: .utf8)
        let changed = try Doctor.examine(goldens: home.path, compute: compute)
        #expect(!changed.isSound && changed.checks.count == 1)

        let empty = try TemporaryFolder()
        expectRefusal("nothing to hold against") { _ = try Doctor.examine(goldens: empty.path, compute: compute) }
    }
}
