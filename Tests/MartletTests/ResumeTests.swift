import Martlet
import MartletCore
import MartletModel
import MartletTestSupport
import Testing

@Suite struct ResumeTests {
    private func bytes(_ folder: TemporaryFolder, _ step: Int, _ file: String) throws -> [UInt8] {
        try FileSystem.read(folder.file("run/checkpoint-\(step)/\(file)"))
    }

    /// Metrics without what a clock or the machine decides.
    private func metrics(_ folder: TemporaryFolder) throws -> [String] {
        let text = String(decoding: try FileSystem.read(folder.file("run/metrics.jsonl")), as: UTF8.self)
        return try text.split(separator: "\n").map { line in
            guard var row = try JSON(parsing: String(line)).object else { return "?" }
            for key in ["tokens_per_second", "step_seconds", "peak_memory_bytes", "eval_seconds"] { row[key] = nil }
            return JSON.object(row).text()
        }
    }

    private func withValidation(_ recipe: inout Recipe) {
        recipe.evalDataset = ["eval.jsonl"]
        recipe.evalSteps = 3
        recipe.loadBestModelAtEnd = true
        recipe.lrSchedulerType = .cosine
        recipe.warmupSteps = 2
    }

    /// The loss scale is what it was: no step is made again on resuming.
    @Test func lossScaleIsResumed() throws {
        let folder = try TemporaryFolder(), recipe = toyRecipe(folder)
        func notes(stopAt: Int) throws -> Int {
            let model = try ToyModel()
            (model.needsLossScale, model.fault) = (true, .overflow(above: 1024))
            return try runToy(recipe, model: model) { event in
                if case .step(let row) = event, row.step == stopAt { return .stop }
                return .proceed
            }.events.count { if case .note = $0 { true } else { false } }
        }
        #expect(try notes(stopAt: 4) == 6)
        #expect(try notes(stopAt: 100) == 0)
        let state = try FileSystem.readJSON(folder.file("run/checkpoint-10/trainer_state.json"))
        #expect(state["loss_scale"]?["value"]?.number == 1024 && state["loss_scale"]?["steps"]?.integer == 10)
    }

    /// Stopped after every possible step and continued, a run ends with the same bytes as one that was not.
    @Test func resumedEqualsUninterrupted() throws {
        let whole = try TemporaryFolder(), model = try ToyModel()
        let reference = try runToy(
            toyRecipe(whole, withValidation), model: model, validation: ToySteps(stepsPerEpoch: 2))
        #expect(reference.result.end == .completed)
        for stopAt in 1...9 {
            let folder = try TemporaryFolder(), recipe = toyRecipe(folder, withValidation)
            let first = try runToy(recipe, model: try ToyModel(), validation: ToySteps(stepsPerEpoch: 2)) { event in
                if case .step(let row) = event, row.step == stopAt { return .stop }
                return .proceed
            }
            #expect(first.result.end == .stopped && first.result.step == stopAt)
            #expect(first.result.exports.isEmpty)
            // Another start: the tensors must come from the checkpoint.
            let other = try ToyModel(seed: 77)
            let second = try runToy(recipe, model: other, validation: ToySteps(stepsPerEpoch: 2))
            #expect(second.overview?.doneSteps == stopAt)
            #expect(second.result.end == .completed)
            #expect(other.bytes == model.bytes)
            #expect(second.result.best?.step == reference.result.best?.step)
            #expect(try metrics(folder) == metrics(whole))
            for file in ["parameters.safetensors", "optimizer.safetensors"] {
                #expect(try bytes(folder, 10, file) == bytes(whole, 10, file))
            }
            // The state differs only in the recipe's output_dir.
            let states = try [folder, whole].map { folder in
                var state = try FileSystem.readJSON(folder.file("run/checkpoint-10/trainer_state.json")).object
                state?["recipe"] = nil
                return state
            }
            #expect(states[0] == states[1] && states[0] != nil)
        }
    }

    @Test func aCrashLosesOnlyWhatCameAfterTheCheckpoint() throws {
        struct Crash: Error {}
        let whole = try TemporaryFolder(), model = try ToyModel()
        try runToy(toyRecipe(whole), model: model)
        let folder = try TemporaryFolder(), crashing = try ToyModel()
        crashing.fault = .nanLoss(step: 7)
        _ = errorOf { try runToy(toyRecipe(folder), model: crashing) }
        // What a kill in the middle of things would leave besides.
        try FileSystem.makeFolder(folder.file("run/.checkpoint-8.123.abc.partial"))
        try AtomicFile.write("half", to: folder.file("run/.checkpoint-8.123.abc.partial/parameters.safetensors"))
        let log = folder.file("run/metrics.jsonl")
        try AtomicFile.write(try FileSystem.read(log) + Array("{\"step\": 7, \"lo".utf8), to: log)
        let resumed = try ToyModel(seed: 5)
        let run = try runToy(toyRecipe(folder), model: resumed)
        #expect(run.overview?.doneSteps == 4)
        #expect(resumed.bytes == model.bytes)
        #expect(try metrics(folder) == metrics(whole))
        #expect(try FileSystem.list(folder.file("run")).allSatisfy { !$0.hasSuffix(".partial") })
    }

    @Test func aDamagedCheckpointIsPassedOver() throws {
        let folder = try TemporaryFolder(), model = try ToyModel()
        try runToy(toyRecipe(folder), model: model)
        for (file, text) in [("parameters.safetensors", "damaged"), ("trainer_state.json", "{")] {
            try AtomicFile.write(text, to: folder.file("run/checkpoint-10/\(file)"))
            let again = try ToyModel(seed: 9)
            let run = try runToy(toyRecipe(folder), model: again)
            #expect(run.overview?.doneSteps == 8)
            #expect(run.notes.count == 1 && run.notes[0].contains("checkpoint-10"))
            #expect(again.bytes == model.bytes)
        }
    }

    @Test func aFinishedRunOnlyExportsAgain() throws {
        let folder = try TemporaryFolder()
        try runToy(toyRecipe(folder), model: try ToyModel())
        let run = try runToy(toyRecipe(folder), model: try ToyModel())
        #expect(run.steps.isEmpty && run.result.end == .completed && run.result.exports.count == 1)
    }

    @Test func aNamedCheckpoint() throws {
        let folder = try TemporaryFolder(), model = try ToyModel(), again = try ToyModel(seed: 3)
        try runToy(toyRecipe(folder), model: model)
        let run = try runToy(toyRecipe(folder) { $0.resume = folder.file("run/checkpoint-4") }, model: again)
        #expect(run.overview?.doneSteps == 4 && again.bytes == model.bytes)
        #expect(
            errorOf { try runToy(toyRecipe(folder) { $0.resume = "/nowhere" }, model: again) }?.problem
                == "there is no checkpoint '/nowhere'")
    }

    @Test func whatMayNotChange() throws {
        let folder = try TemporaryFolder()
        try runToy(toyRecipe(folder), model: try ToyModel())
        let changed = toyRecipe(folder) {
            $0.weightDecay = 0.5; $0.loraR = 3; $0.saveSteps = 3; $0.threads = 1; $0.dataset = ["moved.jsonl"]
        }
        let error = try #require(errorOf { try runToy(changed, model: try ToyModel()) })
        #expect(error.problem == "the recipe has changed since the checkpoint was written")
        #expect(error.reason == "weight_decay was 0.0, is 0.5; lora_r was 16, is 3")
        let data = try #require(
            errorOf {
                try runToy(
                    toyRecipe(folder), model: try ToyModel(), training: ToySteps(stepsPerEpoch: 5, fingerprint: "x"))
            })
        #expect(data.problem == "the dataset has changed since the checkpoint was written")
        let never = try #require(
            errorOf { try runToy(toyRecipe(folder) { $0.resume = "never" }, model: try ToyModel()) })
        #expect(never.problem == "the output folder holds the checkpoints of another run")
    }
}
