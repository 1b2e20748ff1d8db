import MartletCore
import MartletModel
import Testing

@testable import Martlet

/// What a step needs, op by op, against the formula that MFU is told with.
@Suite struct StepCostsTests {
    private let lora = ModelSettings(.lora, adapter: LoRASettings(rank: 16, alpha: 32))

    private func step(_ lengths: [Int]) -> PackedStep {
        var step = PackedStep()
        for length in lengths {
            step.append([Int32](repeating: 1, count: length), isTrained: [Bool](repeating: true, count: length))
        }
        return step
    }

    /// Weights that a token meets, without the embedding.
    private func met(_ c: ModelConfiguration, where counts: (Weight) -> Bool) -> [(inputs: Double, outputs: Double)] {
        c.weights.filter { !$0.isNorm && $0 != .embedding && counts($0) }.flatMap { weight in
            let shape = c.shape(of: weight), times = weight.isExperts ? c.experts?.expertsPerToken ?? 0 : 1
            return [(inputs: Double, outputs: Double)](
                repeating: (Double(shape[-1]), Double(shape[-2])), count: times)
        }
    }

    @Test(arguments: [[4096], [100, 28, 3000]]) func operationsAddUpToTheFormula(lengths: [Int]) throws {
        let c = ModelConfiguration.benchmark(.qwen30b, layers: 3), T = Double(lengths.reduce(0, +))
        let squares = lengths.reduce(0.0) { $0 + Double($1 * $1) }
        let attention = 7 * Double(c.layerCount * c.queryHeadCount * c.headSize) * squares
        let frozen = met(c) { _ in true }.reduce(0) { $0 + $1.inputs * $1.outputs }
        let low = met(c, where: \.isAdaptable).reduce(0) { $0 + 16 * ($1.inputs + $1.outputs) }
        let adapters = StepCosts(
            c, step(lengths), lora, dtype: .bfloat16, trainedCount: 1)
        let expected: Double = T * (4 * frozen + 6 * low) + attention
        #expect(abs(adapters.flops / expected - 1) < 1e-12)
        let whole = StepCosts(c, step(lengths), ModelSettings(.full), dtype: .bfloat16, trainedCount: 1)
        let expectedWhole: Double = 6 * T * frozen + attention
        #expect(abs(whole.flops / expectedWhole - 1) < 1e-12)
    }

    @Test func shortStepsAreBoundByBytes() throws {
        let c = ModelConfiguration.benchmark(.qwen30b, layers: 1)
        let costs = StepCosts(
            c, step([64]), lora, dtype: .bfloat16, trainedCount: 1000)
        // All 128 experts are met by 512 rows: their weights at 4 TB/s, some 0.3 ms; the operations would take 0.01.
        let experts = try #require(costs.costs["experts"]).milliseconds(gigaflops: 700_000, gigabytes: 4000)
        #expect((0.3..<0.32).contains(experts))
        let adamW = try #require(costs.costs["adamW"]).milliseconds(gigaflops: 700_000, gigabytes: 4000)
        #expect(abs(adamW - 28_000 / 4e9) < 1e-9)
    }
}
