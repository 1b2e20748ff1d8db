import Martlet
import MartletCPU
import MartletCore
import MartletModel
import Testing

@Suite struct OptimizerTests {
    /// torch 2.13: AdamW(betas=(0.9, 0.99), eps=1e-8), weight decay 0.1 on w and none on the norm, rates 0, 0.01, 0.02,
    /// gradients (step) * 0.1 * [3, -4, 1] and [2, 0.5], clip_grad_norm_(1.0) over both.
    @Test func threeStepsOfTorch() throws {
        let backend = CPUBackend(threads: 1), arena = try backend.makeArena(byteCount: 1 << 14)
        func make(_ weight: Weight, _ values: [Float]) -> Parameter {
            let tensors = (0..<4).map { _ in arena.carve([values.count], for: .adapters) }
            for tensor in tensors { backend.zero(tensor) }
            values.withUnsafeBytes { backend.upload($0, as: .float32, into: tensors[0]) }
            return Parameter(
                name: weight.name, group: "any", weight: weight, role: .whole, master: Master(value: tensors[0]),
                gradient: tensors[1],
                firstMoment: tensors[2], secondMoment: tensors[3])
        }
        let parameters = [make(.query(0), [0.5, -1, 2]), make(.inputNorm(0), [1, 1.5])]
        var recipe = Recipe(model: "m", dataset: ["d"])
        (recipe.weightDecay, recipe.adamBeta2) = (0.1, 0.99)
        let optimizer = Optimizer(recipe)
        let norms = [0.55, 1.1, 1.65]
        let expected: [([Float], [Float])] = [
            ([0.5, -1, 2], [1, 1.5]),
            (
                [0.48976290225982666, -0.9892628788948059, 1.9882628917694092],
                [0.9902628660202026, 1.4902628660202026]
            ),
            ([0.4690546989440918, -0.9675557017326355, 1.9645577669143677], [0.9705342054367065, 1.4705342054367065]),
        ]
        for step in 1...3 {
            var squares = 0.0
            for (parameter, direction) in zip(parameters, [[3, -4, 1] as [Float], [2, 0.5]]) {
                let gradient = direction.map { $0 * 0.1 * Float(step) }
                gradient.withUnsafeBytes { backend.upload($0, as: .float32, into: parameter.gradient) }
                squares += backend.sumOfSquares(parameter.gradient)
            }
            #expect(abs(squares.squareRoot() - norms[step - 1]) < 1e-6)
            let rate = [0, 0.01, 0.02][step - 1]
            optimizer.step(step, gradientNorm: squares.squareRoot(), learningRate: rate)
                .apply(to: parameters, on: backend)
            for (parameter, expected) in zip(parameters, [expected[step - 1].0, expected[step - 1].1]) {
                var found = [Float](repeating: 0, count: expected.count)
                found.withUnsafeMutableBytes { backend.download(parameter.value, into: $0) }
                for (a, b) in zip(found, expected) {
                    #expect(abs(a - b) <= 3e-7 * abs(b), "step \(step): \(a), not \(b)")
                }
            }
        }
    }

    @Test func clippingIsTorchs() {
        var recipe = Recipe(model: "m", dataset: ["d"])
        #expect(Optimizer(recipe).clippingScale(forNorm: 0.5) == 1)
        #expect(Optimizer(recipe).clippingScale(forNorm: 4) == 1 / 4.000001)
        #expect(Optimizer(recipe).clippingScale(forNorm: 1) < 1)
        recipe.maxGradNorm = 0
        #expect(Optimizer(recipe).clippingScale(forNorm: 4) == 1)
    }
}
