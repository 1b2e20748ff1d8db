import MartletCore
import MartletModel
import Testing

/// The model against transformers and PEFT, in float32. Tolerances: docs/goldens.md.
@Suite struct GoldenTests {
    @Test(arguments: Golden.names) func logitsAndLoss(_ name: String) throws {
        let golden = try Golden(name)
        let model = try golden.model(ModelSettings(.inference))
        expectClose(try model.logits(golden.step()), try golden.floats("forward.logits"), absolute: 1e-4, "logits")
        let outcome = try model.evaluate(golden.step())
        #expect(abs(outcome.loss - Double(try golden.floats("forward.loss")[0])) < 1e-5)
    }

    @Test(arguments: Golden.names) func everyGradient(_ name: String) throws {
        let golden = try Golden(name)
        var settings = ModelSettings(.full)
        settings.trainsRouter = golden.checkpoint.configuration.experts != nil
        for (tile, kept) in [(2048, 0), (5, 1), (7, golden.checkpoint.configuration.layerCount)] {
            let model = try golden.model(settings, tile: tile, kept: kept)
            let outcome = try model.trainStep(golden.step(), index: 0)
            #expect(abs(outcome.loss - Double(try golden.floats("forward.loss")[0])) < 1e-5)
            for parameter in model.parameters {
                let gradient = model.floats(parameter.gradient)
                try expectParts(gradient, of: parameter.weight, golden, prefix: "grad.", relative: 1e-4)
            }
            #expect(model.parameters.map(\.weight).count == golden.checkpoint.configuration.weights.count)
        }
    }

    @Test(arguments: Golden.names) func paddingCannotMatter(_ name: String) throws {
        // There is no padding here: a batch with padding is the same step with the padding left out.
        let golden = try Golden(name)
        let mask = try golden.integers("padded.attention_mask"), ids = try golden.integers("input.input_ids")
        let logits = try golden.floats("padded.logits")
        let length = try golden.shape("input.input_ids")[1], V = golden.checkpoint.configuration.vocabularyCount
        var step = PackedStep(), expected: [Float] = []
        for start in stride(from: 0, to: ids.count, by: length) {
            let rows = (start..<start + length).filter { mask[$0] == 1 }
            step.append(rows.map { ids[$0] }, isTrained: rows.map { _ in true })
            for row in rows { expected += logits[row * V..<(row + 1) * V] }
        }
        let model = try golden.model(ModelSettings(.inference))
        expectClose(try model.logits(step), expected, absolute: 1e-4, "logits beside padding")
    }

    @Test(arguments: Golden.names) func packedEqualsApart(_ name: String) throws {
        let golden = try Golden(name)
        let ids = try golden.integers("packed.input_ids"), positions = try golden.integers("packed.position_ids")
        let cut = try #require(positions.indices.dropFirst().first { positions[$0] == 0 })
        var step = PackedStep()
        for part in [Array(ids[..<cut]), Array(ids[cut...])] {
            step.append(part, isTrained: part.map { _ in true })
        }
        #expect(step.positions == positions)
        let model = try golden.model(ModelSettings(.inference), tile: 5)
        expectClose(try model.logits(step), try golden.floats("packed.logits"), absolute: 1e-4, "packed logits")
    }

    @Test(arguments: Golden.names) func greedyDecoding(_ name: String) throws {
        let golden = try Golden(name)
        let expected = try golden.integers("greedy.ids"), promptCount = 6
        for tile in [4, 2048] {
            let generation = Generation(try golden.model(ModelSettings(.inference), tile: tile, context: 32))
            var ids = Array(expected[..<promptCount])
            var logits = try generation.feed(ids)
            while ids.count < expected.count {
                let next = Int32(try #require(logits.indices.max { logits[$0] < logits[$1] }))
                ids.append(next)
                if ids.count < expected.count { logits = try generation.feed([next]) }
            }
            #expect(ids == expected)
        }
    }

    @Test(arguments: Golden.names.filter { $0.hasPrefix("moe") }) func loadBalancing(_ name: String) throws {
        let golden = try Golden(name)
        let coefficient = try #require(golden.checkpoint.configuration.experts).auxiliaryLossCoefficient
        var settings = ModelSettings(.full)
        settings.trainsRouter = true
        settings.auxiliaryLossCoefficient = coefficient
        let model = try golden.model(settings, tile: 7)
        let outcome = try model.trainStep(golden.step(), index: 0)
        let expected = Double(try golden.floats("aux.loss")[0])
        #expect(abs(outcome.auxiliaryLoss / coefficient - expected) < 1e-5 * expected)
        for parameter in model.parameters where parameter.weight.kind == .router {
            try expectParts(
                model.floats(parameter.gradient), of: parameter.weight, golden, prefix: "aux.grad.", relative: 1e-4)
        }
    }

    @Test(arguments: Golden.names) func fullTraining(_ name: String) throws {
        let golden = try Golden(name)
        var settings = ModelSettings(.full)
        settings.trainsRouter = golden.checkpoint.configuration.experts != nil
        let model = try golden.model(settings)
        let losses = try train(model, golden)
        expectClose(losses, try golden.floats("train.losses"), relative: 1e-3, "losses")
        for parameter in model.parameters {
            let value = model.floats(parameter.value)
            try expectParts(value, of: parameter.weight, golden, prefix: "train.after.", relative: 1e-3, mayLack: true)
        }
    }

    /// Five steps of AdamW as in tools/goldens/judge.py; the losses before each and after the last.
    func train(_ model: Model, _ golden: Golden) throws -> [Float] {
        let settings = AdamWSettings(weightDecay: 0.5)
        var losses: [Float] = []
        for step in 0..<5 {
            losses.append(Float(try model.trainStep(golden.step(), index: step).loss))
            for p in model.parameters {
                model.backend.adamW(
                    p.value, p.gradient, p.firstMoment, p.secondMoment, settings, step: step + 1, learningRate: 2e-3,
                    gradientScale: 1)
            }
        }
        losses.append(Float(try model.evaluate(golden.step()).loss))
        return losses
    }

    /// Compares a whole weight (or its gradient) with the parts that a checkpoint stores it in.
    func expectParts(
        _ values: [Float], of weight: Weight, _ golden: Golden, prefix: String, relative: Float, mayLack: Bool = false
    ) throws {
        let parts = golden.checkpoint.family.layouts(weight, golden.checkpoint.configuration)[0]
        for part in parts {
            if mayLack, golden.reference[prefix + part.name] == nil { continue }
            let start = part.firstRow * part.columnCount
            let expected = try golden.floats(prefix + part.name)
            expectClose(
                Array(values[start..<start + part.rowCount * part.columnCount]), expected, relative: relative,
                prefix + part.name)
        }
    }
}
