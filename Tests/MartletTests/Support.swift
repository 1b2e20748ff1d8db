import Martlet
import MartletCore
import MartletTestSupport
import Testing

/// Runs `body` and gives the MartletError it throws; each must say what to do.
func errorOf(_ body: () throws -> Void, sourceLocation: SourceLocation = #_sourceLocation) -> MartletError? {
    do {
        try body()
        Issue.record("no error was thrown", sourceLocation: sourceLocation)
    } catch let error as MartletError {
        #expect(error.remedy?.isEmpty == false, "no remedy: \(error)", sourceLocation: sourceLocation)
        return error
    } catch {
        Issue.record("not a MartletError: \(error)", sourceLocation: sourceLocation)
    }
    return nil
}

/// A recipe for a toy run into `folder`.
func toyRecipe(_ folder: TemporaryFolder, _ change: (inout Recipe) -> Void = { _ in }) -> Recipe {
    var recipe = Recipe(model: "toy", dataset: ["toy.jsonl"])
    recipe.outputDir = folder.file("run")
    recipe.maxSteps = 10
    recipe.learningRate = 0.05
    recipe.saveSteps = 4
    change(&recipe)
    return recipe
}

/// One run with everything that it told.
struct ToyRun {
    var result: TrainingResult
    var events: [TrainingEvent]

    var steps: [StepMetrics] { events.compactMap { if case .step(let row) = $0 { row } else { nil } } }
    var evaluations: [EvaluationMetrics] { events.compactMap { if case .evaluated(let row) = $0 { row } else { nil } } }
    var checks: [GradientCheck] {
        events.compactMap { if case .gradientsChecked(let check) = $0 { check } else { nil } }
    }
    var saved: [Int] { events.compactMap { if case .saved(_, let step) = $0 { step } else { nil } } }
    var notes: [String] { events.compactMap { if case .note(let note) = $0 { note } else { nil } } }
    var overview: TrainingOverview? { events.lazy.compactMap { if case .started(let o) = $0 { o } else { nil } }.first }
}

/// Runs the toy model; `answer` may stop the run.
@discardableResult
func runToy(
    _ recipe: Recipe, model: ToyModel, training: ToySteps = ToySteps(stepsPerEpoch: 5), validation: ToySteps? = nil,
    answer: (TrainingEvent) -> TrainingAnswer = { _ in .proceed }
) throws -> ToyRun {
    var events: [TrainingEvent] = []
    let parts = TrainingParts(
        model: model, training: training, validation: validation,
        memory: MemoryPlan(rows: [.init("weights", 1 << 20), .init("workspace", 3 << 20, note: "tiles of 8 tokens")]),
        totalParameterCount: 1000, data: [.init("examples", "40")],
        export: { (folder) throws(MartletError) in
            try FileSystem.makeFolder(FileSystem.join(folder, "adapter"))
            return [FileSystem.join(folder, "adapter")]
        })
    let result = try train(recipe, parts, stop: StopSwitch()) { event in
        events.append(event)
        return answer(event)
    }
    return ToyRun(result: result, events: events)
}
