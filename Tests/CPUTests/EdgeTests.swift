import MartletCPU
import MartletCore
import MartletTestSupport
import Testing

/// What is optional may be missing, and nothing may be there at all.
@Suite struct EdgeTests {
    @Test func adaptersThatAreOnlyUsedGetNoGradient() throws {
        for whole in [
            OpCase.linear(seed: 1, t: 7, i: 5, o: 6, rank: 2, dropout: 0.4),
            OpCase.experts(seed: 1, t: 7, h: 5, f: 4, e: 3, k: 2, rank: 2, dropout: 0.4),
        ] {
            var used = whole
            for name in whole.inputs.keys where name.hasPrefix("d") && name.contains(/a\.start|b\.start/) {
                used.inputs[name] = nil
            }
            let trained = try whole.run(on: CPUBackend()).results, results = try used.run(on: CPUBackend()).results
            #expect(results.count < trained.count)
            for (name, values) in results { #expect(values == trained[name], "\(whole.name): \(name)") }
        }
    }

    @Test func theGradientOfTheInputIsOptional() throws {
        let bench = try OpBench(CPUBackend(), shapes: ScratchShapes())
        let x = bench.tensor([1, 2, 3, 4], [2, 2]), dweight = bench.tensor([0, 0], [1, 2])
        let layer = Linear(weight_OI: bench.tensor([1, 1], [1, 2]), dweight_OI: dweight)
        bench.backend.linearBackward(
            x, layer, firstRow: 0, bench.tensor([1, 10], [2, 1]), into: nil, adds: false, gradients: .later)
        #expect(bench.values(dweight) == [31, 42])
    }

    @Test func nothingInNothingOut() throws {
        var shapes = ScratchShapes()
        (shapes.tokens, shapes.hidden, shapes.vocabulary) = (4, 2, 3)
        let bench = try OpBench(CPUBackend(), shapes: shapes), backend = bench.backend
        let none = bench.output([0, 2]), weight = bench.tensor([1, 1], [2])
        backend.rmsNorm(none, weight, epsilon: 1e-6, into: none)
        backend.linear(none, Linear(weight_OI: bench.tensor([1, 1], [1, 2])), firstRow: 0, into: none, adds: false)
        backend.zero(none)
        #expect(backend.isFinite(none) && backend.sumOfSquares(none) == 0)
        // Rows, but none with a target: no loss, and a gradient of zero.
        let x = bench.tensor([1, 2, 3, 4], [2, 2]), head = bench.tensor([1, 2, 3, 4, 5, 6], [3, 2])
        let loss = bench.output([2]), dx = bench.output([2, 2])
        backend.crossEntropy(
            x, head, bench.ids([-1, -1], [2]), gradientScale: 1, into: loss, dx, accumulating: nil)
        #expect(bench.values(loss) == [0, 0] && bench.values(dx) == [0, 0, 0, 0])
    }

    /// Two queries, one key: the first query sees nothing.
    @Test func aQueryThatSeesNothingIsZeroAndHasNoGradient() throws {
        let span = AttentionSpan(queryStart: 0, queryCount: 2, keyStart: 0, keyCount: 1)
        let c = OpCase.attention(seed: 1, t: 2, u: 1, q: 1, g: 1, d: 2, spans: [span])
        let results = try c.run(on: CPUBackend()).results
        #expect(results["o"] == [0, 0] + c.values("v"))
        #expect(results["logSumExp"]?.first == -.infinity)
        #expect(results["dq"]?.prefix(2) == [0, 0])
        expectClose(
            results["dv"] ?? [], zip(c.values("dv.start"), c.values("do").suffix(2)).map { Double($0 + $1) }, "dv",
            tolerance: 1e-6)
    }

    /// A NaN among the inputs reaches the result: it must not be masked by a maximum or a clamp.
    @Test func notANumberIsNotHidden() throws {
        let span = AttentionSpan(queryStart: 0, queryCount: 9, keyStart: 0, keyCount: 9)
        var attention = OpCase.attention(seed: 1, t: 9, u: 9, q: 2, g: 1, d: 3, spans: [span])
        attention.inputs["k"]?[0] = .nan
        #expect(try attention.run(on: CPUBackend()).results["o"]?.allSatisfy(\.isNaN) == true)
        var loss = OpCase.crossEntropy(seed: 1, t: 1, h: 3, v: 11)
        loss.inputs["head"]?[30] = .nan
        #expect(try loss.run(on: CPUBackend()).results["loss"]?.first?.isNaN == true)
        var unit = OpCase.swiGLU(seed: 1, t: 1, f: 9)
        unit.inputs["gate"]?[4] = .nan
        #expect(try unit.run(on: CPUBackend()).results["y"].map { $0.map(\.isNaN) } == (0..<9).map { $0 == 4 })
    }
}
