import MartletCPU
import MartletCore
import MartletModel
import Testing

/// What must not depend on how the work is cut.
@Suite struct StoryTests {
    private func settings(dropout: Float) -> ModelSettings {
        var settings = ModelSettings(.lora, adapter: LoRASettings(rank: 3, alpha: 6, dropout: dropout))
        settings.seed = 11
        return settings
    }

    /// A model whose B is not zero, so that every path carries a gradient.
    private func model(
        _ golden: Golden, dropout: Float = 0.25, tile: Int, kept: Int, outputs: Int = 0, keepsWeights: Bool = false,
        keepsEverything: Bool = false, threads: Int = 2
    ) throws -> Model {
        let backend = CPUBackend(threads: threads)
        let model = try golden.model(
            settings(dropout: dropout), tile: tile, kept: kept, outputs: outputs, keepsWeights: keepsWeights,
            backend: backend
        ) { $0.keepsEverything = keepsEverything }
        for (i, p) in model.parameters.enumerated() where p.role == .b {
            var random = RandomStream(seed: UInt64(i))
            model.upload((0..<p.value.count).map { _ in 0.1 * random.normal() }, into: p.value)
        }
        return model
    }

    private func gradients(_ model: Model, _ step: PackedStep) throws -> (loss: Double, gradients: [[Float]]) {
        let outcome = try model.trainStep(step, index: 3)
        return (outcome.loss, model.parameters.map { model.floats($0.gradient) })
    }

    @Test(arguments: ["moe_seed1", "moe_first_dense", "dense_untied"])
    func anyTilingEqualsAnyOther(_ name: String) throws {
        let golden = try Golden(name), step = try golden.step()
        let whole = try model(golden, tile: 2048, kept: 2)
        let (loss, expected) = try gradients(whole, step)
        for (tile, kept, outputs, keepsWeights) in [
            (1, 0, 0, false), (5, 1, 0, true), (7, 2, 1, false), (12, 0, 2, true), (23, 1, 0, false), (9, 0, 1, false),
        ] {
            let other = try model(golden, tile: tile, kept: kept, outputs: outputs, keepsWeights: keepsWeights)
            let (otherLoss, found) = try gradients(other, step)
            #expect(abs(otherLoss - loss) < 1e-6 * loss)
            for (i, p) in other.parameters.enumerated() {
                expectClose(found[i], expected[i], relative: 2e-5, "tile \(tile), kept \(kept), \(outputs): \(p.name)")
            }
        }
    }

    @Test(arguments: ["moe_seed0", "dense_tied"])
    func packedEqualsUnpacked(_ name: String) throws {
        let golden = try Golden(name), step = try golden.step()
        let packed = try model(golden, dropout: 0, tile: 9, kept: 1)
        let (loss, expected) = try gradients(packed, step)
        // The sequences one by one, weighted by their share of the targets.
        var lossSum = 0.0
        var sums = expected.map { [Float](repeating: 0, count: $0.count) }
        for s in 0..<step.sequenceCount {
            let rows = step.offsets[s]..<step.offsets[s + 1]
            let alone = PackedStep(
                tokens: Array(step.tokens[rows]), targets: Array(step.targets[rows]),
                positions: Array(step.positions[rows]), offsets: [0, rows.count])
            let apart = try model(golden, dropout: 0, tile: 9, kept: 1)
            let (part, gradients) = try gradients(apart, alone)
            lossSum += part * Double(alone.targetCount)
            let share = Float(alone.targetCount) / Float(step.targetCount)
            for i in sums.indices { for j in sums[i].indices { sums[i][j] += share * gradients[i][j] } }
        }
        #expect(abs(lossSum / Double(step.targetCount) - loss) < 1e-6 * loss)
        for i in sums.indices { expectClose(expected[i], sums[i], relative: 2e-5, packed.parameters[i].name) }
    }

    /// What is kept besides is what would be made again.
    @Test(arguments: ["moe_seed1", "moe_first_dense", "dense_untied"])
    func keepingEverythingChangesNoByte(_ name: String) throws {
        let golden = try Golden(name), step = try golden.step()
        for (tile, kept) in [(24, 2), (7, 2), (5, 1)] {
            let (loss, expected) = try gradients(try model(golden, tile: tile, kept: kept), step)
            let keeper = try model(golden, tile: tile, kept: kept, keepsEverything: true)
            for _ in 0..<2 {
                let found = try gradients(keeper, step)
                #expect(found.loss == loss && found.gradients == expected, "tile \(tile), kept \(kept)")
            }
        }
    }

    @Test func sameSeedSameBytesWithAnyThreads() throws {
        let golden = try Golden("moe_seed2"), step = try golden.step()
        let first = try gradients(try model(golden, tile: 8, kept: 1, threads: 1), step)
        for threads in [1, 2, 3] {
            let again = try gradients(try model(golden, tile: 8, kept: 1, threads: threads), step)
            #expect(again.loss == first.loss)
            #expect(again.gradients == first.gradients)
        }
    }

    /// Three steps of AdamW: everything on the device, or parts of it in host memory, copied at once or as late as possible.
    @Test(arguments: ["moe_seed1", "moe_first_dense"], [ModelSettings.Method.lora, .full])
    func whatLivesInHostMemoryChangesNothing(_ name: String, _ method: ModelSettings.Method) throws {
        let golden = try Golden(name), step = try golden.step()
        func run(late: Bool, _ change: (inout ExecutionPlan) -> Void) throws -> [[Float]] {
            let backend = CPUBackend(threads: 2)
            backend.copiesLate = late
            var settings = method == .lora ? settings(dropout: 0.25) : ModelSettings(.full)
            settings.quantizesMoments = late
            let model = try golden.model(settings, tile: 7, backend: backend, planning: change)
            var found: [[Float]] = []
            for index in 0..<3 {
                let outcome = try model.trainStep(step, index: index), squares = model.gradientSquares()
                #expect(squares == backend.sumsOfSquares(of: model.parameters.map(\.gradient)))
                var adamW = AdamWSettings()
                adamW.weightDecay = 0.1
                model.update(OptimizerStep(adamW, number: index + 1, learningRate: 0.05, gradientScale: 1))
                // Made by the next pass, whichever that is, or here.
                if index == 1 { model.settle() }
                if index == 2 { continue }
                found.append([Float(outcome.loss), Float(try model.evaluate(step).loss)])
            }
            model.settle()
            return found + model.parameters.map { backend.floats($0.master) }
                + model.parameters.flatMap { $0.state.map(\.tensor) }.filter { $0.dtype == .float32 }.map(model.floats)
        }
        for late in [false, true] {
            let expected = try run(late: late) { _ in }
            #expect(expected[0] != expected[1])
            for (hidden, state, gradients, tiles) in [
                (true, 0, 0, 0), (false, 1, 0, 1), (false, 0, 1, 3), (true, 2, 2, 99), (true, 9, 9, 2),
            ] {
                let found = try run(late: late) { plan in
                    (plan.hiddenOut, plan.stateLayersOut, plan.gradientLayersOut) = (hidden, state, gradients)
                    plan.outputsOut = state != 1
                    (plan.keptLayers, plan.keptOutputs) = state == 9 ? (1, 2) : (0, 0)
                    // A step may hold fewer tokens, and so fewer tiles, than were planned.
                    if tiles == 3 { plan.stepTokens = 45 }
                    plan.tilesOut = min(
                        tiles, plan.tileCount * (golden.checkpoint.configuration.layerCount - plan.keptLayers))
                }
                #expect(found == expected, "\(hidden), \(state), \(gradients), \(tiles), late \(late)")
            }
        }
    }

    /// Whatever stands in the gradients' memory, and in the slots of those in host memory, when a step begins.
    @Test(arguments: ["moe_seed1", "dense_tied"], [ModelSettings.Method.lora, .full])
    func earlierGradientsLeaveNoTrace(_ name: String, _ method: ModelSettings.Method) throws {
        let golden = try Golden(name), step = try golden.step()
        var settings = method == .lora ? settings(dropout: 0.25) : ModelSettings(.full)
        settings.trainsRouter = name == "moe_seed1"
        for out in [0, 1, 2] {
            let model = try golden.model(settings, tile: 7, backend: CPUBackend(threads: 2)) {
                $0.gradientLayersOut = out
            }
            func gradients() throws -> [[Float]] {
                _ = try model.trainStep(step, index: 0)
                return model.parameters.map { model.floats($0.gradient) }
            }
            let expected = try gradients()
            for tensor in model.parameters.flatMap({ [$0.gradient, $0.accumulator] }) {
                model.upload([Float](repeating: .nan, count: tensor.count), into: tensor)
            }
            #expect(try gradients() == expected && expected.joined().allSatisfy(\.isFinite), "\(out)")
        }
    }

    /// Router losses and all, to the last bit: it is a power of two.
    @Test func lossScaleMultipliesEveryGradient() throws {
        let golden = try Golden("moe_seed1"), step = try golden.step()
        var settings = settings(dropout: 0.25)
        (settings.trainsRouter, settings.auxiliaryLossCoefficient, settings.zLossCoefficient) = (true, 0.02, 0.001)
        let model = try golden.model(settings, tile: 7, kept: 1, backend: CPUBackend())
        let outcome = try model.trainStep(step, index: 0)
        let plain = model.parameters.map { model.floats($0.gradient) }
        let again = try model.trainStep(step, index: 0, lossScale: 4096)
        #expect(again.loss == outcome.loss && again.zLoss == outcome.zLoss && outcome.zLoss > 0)
        for (gradient, parameter) in zip(plain, model.parameters) {
            #expect(model.floats(parameter.gradient) == gradient.map { 4096 * $0 }, "\(parameter.name)")
        }
    }

    @Test func dropoutIsThereAndChangesWithTheStep() throws {
        let golden = try Golden("moe_seed0"), step = try golden.step()
        let model = try model(golden, dropout: 0.5, tile: 24, kept: 0)
        let evaluated = try model.evaluate(step).loss
        let third = try model.trainStep(step, index: 3).loss, fourth = try model.trainStep(step, index: 4).loss
        #expect(third != evaluated && third != fourth)
        #expect(try model.trainStep(step, index: 3).loss == third)
    }

    @Test func aGradientOfEveryAdapterByDifferences() throws {
        // With dropout on: the masks of forward and backward must be the same ones.
        let golden = try Golden("moe_first_dense"), step = try golden.step()
        let model = try model(golden, dropout: 0.3, tile: 10, kept: 1)
        _ = try model.trainStep(step, index: 7)
        let gradients = model.parameters.map { model.floats($0.gradient) }
        for (i, p) in model.parameters.enumerated() {
            let size = gradients[i].reduce(0) { max($0, $1.magnitude) }
            guard let j = gradients[i].firstIndex(where: { $0.magnitude == size }), size > 1e-4 else { continue }
            var values = model.floats(p.value)
            let original = values[j], h: Float = 1e-2
            var loss: [Double] = []
            for side: Float in [1, -1] {
                values[j] = original + side * h
                model.upload(values, into: p.value)
                loss.append(try model.trainStep(step, index: 7).loss)
            }
            values[j] = original
            model.upload(values, into: p.value)
            let numeric = Float((loss[0] - loss[1]) / (2 * Double(h)))
            #expect(
                (numeric - gradients[i][j]).magnitude < 0.03 * size + 1e-4, "\(p.name): \(numeric), \(gradients[i][j])")
        }
    }
}
