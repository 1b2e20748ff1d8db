import MartletCPU
import MartletCore
import Testing

/// With x = 1, W = 0, A = B = identity and scale 1 the result of a projection *is* the mask.
@Suite struct DropoutTests {
    private static let width = 13
    private static let probability: Float = 0.3

    private struct Masks {
        var forward: [Float]
        var backward: [Float]
    }

    /// The masks of rows `rows`, tile by tile.
    private func masks(rows: Range<Int>, tile: Int) throws -> Masks {
        let width = DropoutTests.width, backend = CPUBackend(threads: 2)
        var shapes = ScratchShapes()
        (shapes.tokens, shapes.widest, shapes.rank) = (rows.count, width, width)
        let bench = try OpBench(backend, shapes: shapes)
        let identity = bench.tensor((0..<width * width).map { $0 % (width + 1) == 0 ? 1 : 0 }, [width, width])
        let layer = Linear(
            weight_OI: bench.tensor([Float](repeating: 0, count: width * width), [width, width]),
            adapter: LoRA(
                a: identity, b: identity, scale: 1,
                dropout: Dropout(probability: DropoutTests.probability, key: 0x1234_5678_9ABC_DEF0)))
        let ones = bench.tensor([Float](repeating: 1, count: rows.count * width), [rows.count, width])
        let y = bench.output([rows.count, width]), dx = bench.output([rows.count, width])
        for first in stride(from: 0, to: rows.count, by: tile) {
            let part = first..<min(rows.count, first + tile), firstRow = rows.lowerBound + first
            backend.linear(ones.rows(part), layer, firstRow: firstRow, into: y.rows(part), adds: false)
            backend.linearBackward(
                ones.rows(part), layer, firstRow: firstRow, ones.rows(part), into: dx.rows(part), adds: false,
                gradients: .later)
        }
        return Masks(forward: bench.values(y), backward: bench.values(dx))
    }

    @Test func isTheDefinitionAndTheSameBackwardAndInEveryTiling() throws {
        let rows = 1001..<1101, whole = try masks(rows: rows, tile: 100)
        let definition = (0..<rows.count * DropoutTests.width).map {
            Float(maskFactor(rows.lowerBound * DropoutTests.width + $0, probability: DropoutTests.probability))
        }
        #expect(whole.forward.map { $0 > 0 } == definition.map { $0 > 0 })
        #expect(zip(whole.forward, definition).allSatisfy { ($0 - $1).magnitude < 1e-6 })
        #expect(whole.backward == whole.forward)
        for tile in [7, 1, 33] {
            let tiled = try masks(rows: rows, tile: tile)
            #expect(tiled.forward == whole.forward)
            #expect(tiled.backward == whole.forward)
        }
    }

    @Test func keepsTheShareItShould() throws {
        let mask = try masks(rows: 0..<4000, tile: 512).forward
        let kept = Float(mask.count { $0 > 0 }) / Float(mask.count)
        // 52,000 draws: one standard deviation of the share is 0.002.
        #expect((kept - 0.7).magnitude < 0.01)
    }

    @Test func expertsInTilesEqualExpertsInOne() throws {
        let whole = OpCase.experts(seed: 3, t: 30, h: 6, f: 5, e: 4, k: 2, rank: 2, dropout: 0.4, firstRow: 50)
        let y = try #require(try whole.run(on: CPUBackend()).results["y"])
        for first in stride(from: 0, to: 30, by: 7) {
            let rows = first..<min(30, first + 7)
            var part = OpCase.experts(
                seed: 3, t: rows.count, h: 6, f: 5, e: 4, k: 2, rank: 2, dropout: 0.4, firstRow: 50 + first)
            part.inputs = whole.inputs
            for name in ["x", "y.start", "dy"] {
                part.inputs[name] = Array(whole.values(name)[rows.lowerBound * 6..<rows.upperBound * 6])
            }
            part.inputs["weight"] = Array(whole.values("weight")[rows.lowerBound * 2..<rows.upperBound * 2])
            part.ids["expert"] = Array((whole.ids["expert"] ?? [])[rows.lowerBound * 2..<rows.upperBound * 2])
            let found = try #require(try part.run(on: CPUBackend()).results["y"])
            let wanted = y[rows.lowerBound * 6..<rows.upperBound * 6]
            #expect(zip(found, wanted).allSatisfy { ($0 - $1).magnitude < 1e-4 })
        }
    }
}
