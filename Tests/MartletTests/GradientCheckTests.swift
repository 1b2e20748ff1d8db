import Martlet
import MartletCore
import MartletModel
import MartletTestSupport
import Testing

@Suite struct GradientCheckTests {
    @Test func aIsAwaitedUntilBMoves() throws {
        let folder = try TemporaryFolder()
        let run = try runToy(toyRecipe(folder), model: try ToyModel())
        #expect(run.checks.map(\.step) == [1, 2])
        #expect(run.checks[0].reachedCount == 3 && run.checks[0].waitingCount == 1)
        #expect(run.checks[1].reachedCount == 4 && run.checks[1].waitingCount == 0)
        #expect(run.checks[0].description.contains("1 LoRA A tensors have none yet"))
    }

    @Test func warmupFromZeroDelaysA() throws {
        // The first update has rate 0, so B is still zero at step 2.
        let folder = try TemporaryFolder()
        let run = try runToy(toyRecipe(folder) { $0.warmupSteps = 3 }, model: try ToyModel())
        #expect(run.checks.map(\.step) == [1, 3])
    }

    @Test func idleExpertsAreCounted() throws {
        let folder = try TemporaryFolder(), steps = ToySteps(stepsPerEpoch: 5)
        steps.isOneSided = true
        let run = try runToy(toyRecipe(folder), model: try ToyModel(), training: steps)
        #expect(run.checks[0].expertBlockCount == 2)
        #expect(run.checks[0].idleBlockCount == 1)
        #expect(run.checks[0].unreachedBlockCount == 0)
    }

    @Test func zeroGradientIsAnError() throws {
        let folder = try TemporaryFolder(), model = try ToyModel()
        model.fault = .zeroNorm
        let error = try #require(errorOf { try runToy(toyRecipe(folder), model: model) })
        #expect(error.problem == "a trained tensor gets no gradient")
        #expect(error.location == "step 1, tensor '\(model.parameters[0].name)'")
    }

    @Test func anAThatNeverGetsOneIsAnError() throws {
        let folder = try TemporaryFolder(), model = try ToyModel()
        model.fault = .zeroA
        let error = try #require(errorOf { try runToy(toyRecipe(folder), model: model) })
        #expect(error.location == "step 2, tensor '\(model.parameters[1].name)'")
        #expect(error.reason?.contains("although its B is not") == true)
    }

    @Test func notFiniteStopsAndLeavesTheCheckpoint() throws {
        for (fault, problem) in [
            (ToyModel.Fault.nanGradient(step: 6), "a gradient is not finite"),
            (.nanLoss(step: 6), "the loss is not finite"),
        ] {
            let folder = try TemporaryFolder(), model = try ToyModel()
            model.fault = fault
            let error = try #require(errorOf { try runToy(toyRecipe(folder), model: model) })
            #expect(error.problem == problem)
            #expect(error.location?.hasPrefix("step 6") == true)
            #expect(error.remedy?.contains("the last good checkpoint is of step 4") == true)
            if case .nanGradient = fault { #expect(error.location?.contains(model.parameters[1].name) == true) }
            // And it can be continued from.
            model.fault = .none
            #expect(try runToy(toyRecipe(folder), model: try ToyModel()).overview?.doneSteps == 4)
        }
    }
}
