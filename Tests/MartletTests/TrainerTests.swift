import Martlet
import MartletCore
import MartletModel
import MartletTestSupport
import Testing

@Suite struct TrainerTests {
    @Test func stepsAreCountedAsTransformersCounts() throws {
        for (epochs, steps) in [(1.0, 5), (0.1, 1), (1.5, 8), (2, 10)] {
            let folder = try TemporaryFolder()
            let run = try runToy(
                toyRecipe(folder) {
                    $0.maxSteps = nil; $0.numTrainEpochs = epochs
                }, model: try ToyModel())
            #expect(run.result.step == steps && run.overview?.totalSteps == steps)
        }
    }

    @Test func everythingIsToldInOrder() throws {
        let folder = try TemporaryFolder()
        let run = try runToy(
            toyRecipe(folder) {
                $0.evalDataset = ["e"]; $0.maxSteps = 2
            }, model: try ToyModel(),
            validation: ToySteps(stepsPerEpoch: 1))
        let told = run.events.map { event in
            switch event {
            case .started: "started"
            case .state(let state): state.rawValue
            case .step(let row): "step \(row.step)"
            case .gradientsChecked(let check): "check \(check.step)"
            case .evaluated: "evaluated"
            case .saved(_, let step): "saved \(step)"
            case .note: "note"
            case .finished: "finished"
            }
        }
        #expect(
            told == [
                "started", "training", "check 1", "step 1", "check 2", "step 2", "validating", "evaluated", "training",
                "saving", "saved 2", "training", "exporting", "finished",
            ])
        let overview = try #require(run.overview)
        #expect(overview.memory.map(\.value) == ["1.00 MiB", "3.00 MiB", "4.00 MiB"])
        #expect(overview.trainable.groups.map(\.name) == ["norms", "attention LoRA", "experts"])
        #expect(overview.trainable.groups.map(\.parameterCount) == [3, 14, 4])
        #expect(overview.trainable.share == 0.021)
        for name in ["recipe.yaml", "metrics.jsonl", "report.html", "tensorboard", "checkpoint-2", "adapter"] {
            #expect(FileSystem.exists(folder.file("run/\(name)")), "\(name)")
        }
        #expect(try Recipe(contentsOf: folder.file("run/recipe.yaml")).maxSteps == 2)
    }

    /// A power of two changes nothing, and what is too large for it is told and made again.
    @Test func lossScaleLeavesNoTrace() throws {
        let folder = try TemporaryFolder(), plain = try ToyModel(), scaled = try ToyModel()
        try runToy(toyRecipe(folder) { $0.outputDir = folder.file("plain") }, model: plain)
        (scaled.needsLossScale, scaled.fault) = (true, .overflow(above: 8192))
        let run = try runToy(toyRecipe(folder), model: scaled)
        #expect(scaled.bytes == plain.bytes)
        let notes = run.events.compactMap { if case .note(let text) = $0 { text } else { nil } }
        #expect(
            notes.count == 3 && notes.allSatisfy { $0.contains("step 1: a gradient is not finite at a loss scale") })
        let state = try FileSystem.readJSON(folder.file("run/checkpoint-10/trainer_state.json"))
        #expect(state["loss_scale"]?["value"]?.number == 8192 && state["loss_scale"]?["steps"]?.integer == 10)
        let other = try FileSystem.readJSON(folder.file("plain/checkpoint-10/trainer_state.json"))
        #expect(other["loss_scale"] == nil)
    }

    /// At a scale of 1 there is nothing left to try.
    @Test func gradientThatIsNeverFiniteEndsTheRun() throws {
        let folder = try TemporaryFolder(), model = try ToyModel()
        (model.needsLossScale, model.fault) = (true, .overflow(above: 0))
        let error = expectRefusal("a gradient that is infinite at any scale") {
            try runToy(toyRecipe(folder), model: model)
        }
        #expect(error?.problem == "a gradient is not finite")
    }

    @Test func validationAtTheEndOfEachEpochByDefault() throws {
        let folder = try TemporaryFolder()
        let run = try runToy(
            toyRecipe(folder) {
                $0.evalDataset = ["e"]; $0.maxSteps = 12
            }, model: try ToyModel(),
            validation: ToySteps(stepsPerEpoch: 1))
        #expect(run.evaluations.map(\.step) == [5, 10, 12])
    }

    @Test func stopsEarlyAndEndsWithTheBest() throws {
        let folder = try TemporaryFolder(), model = try ToyModel()
        // A rate far too high: the loss is best at some early validation and not again for two.
        let recipe = toyRecipe(folder) {
            $0.evalDataset = ["e"]
            ($0.evalSteps, $0.maxSteps, $0.learningRate, $0.earlyStoppingPatience) = (1, 60, 3, 2)
            ($0.loadBestModelAtEnd, $0.saveTotalLimit, $0.saveSteps) = (true, 1, 1)
        }
        let validation = ToySteps(stepsPerEpoch: 2)
        let run = try runToy(recipe, model: model, validation: validation)
        let losses = run.evaluations.map(\.loss), best = try #require(run.result.best)
        #expect(run.result.end == .stoppedEarly && run.result.step < 60)
        #expect(best.loss == losses.min() && run.result.step == best.step + 2)
        // The weights at the end are those of the best validation.
        let again = try (0..<2).map { try model.evaluate(validation.step($0)) }
        let lossSum = again.reduce(0.0) { $0 + $1.lossSum }, targetCount = again.reduce(0) { $0 + $1.targetCount }
        #expect(lossSum / Double(targetCount) == best.loss)
        // Newest and best are kept, nothing else.
        let kept = try FileSystem.list(recipe.outputDir).filter { $0.hasPrefix("checkpoint-") }
        #expect(Set(kept) == ["checkpoint-\(best.step)", "checkpoint-\(run.result.step)"])
    }

    @Test func oldCheckpointsGo() throws {
        let folder = try TemporaryFolder()
        let run = try runToy(
            toyRecipe(folder) {
                $0.saveSteps = 2; $0.saveTotalLimit = 2
            }, model: try ToyModel())
        #expect(run.saved == [2, 4, 6, 8, 10])
        let kept = try FileSystem.list(folder.file("run")).filter { $0.hasPrefix("checkpoint-") }
        #expect(kept == ["checkpoint-10", "checkpoint-8"])
    }

    @Test func theLossFalls() throws {
        let folder = try TemporaryFolder()
        let run = try runToy(
            toyRecipe(folder) {
                $0.maxSteps = 200; $0.saveSteps = 500
            }, model: try ToyModel())
        let losses = run.steps.map(\.loss)
        let start: Double = losses.prefix(20).reduce(0, +), end: Double = losses.suffix(20).reduce(0, +)
        #expect(end < start / 2)
    }

    @Test func onlyEveryNthStepIsLogged() throws {
        let folder = try TemporaryFolder()
        try runToy(toyRecipe(folder) { $0.loggingSteps = 4 }, model: try ToyModel())
        let text = String(decoding: try FileSystem.read(folder.file("run/metrics.jsonl")), as: UTF8.self)
        let steps = try text.split(separator: "\n").map { try JSON(parsing: String($0))["step"]?.integer }
        #expect(steps == [1, 4, 8, 10])
    }
}
