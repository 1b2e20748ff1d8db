import MartletCPU
import MartletCore
import MartletTestSupport
import Testing

@Suite struct ElementwiseTests {
    private func makeBench() throws -> OpBench { try OpBench(CPUBackend(threads: 2), shapes: ScratchShapes()) }

    @Test(arguments: [1, 7, 33, 257, 200_001]) func setAddZeroAndSums(count: Int) throws {
        let bench = try makeBench(), backend = bench.backend
        var stream = RandomStream(seed: 9)
        let x = (0..<count).map { _ in stream.normal() }, y = (0..<count).map { _ in stream.normal() }
        // Not ==, which would list how 200,001 elements differ, and take hours for it.
        let left = bench.tensor(x, [count]), right = bench.tensor(y, [count]), copy = bench.output([count])
        backend.set(copy, to: left)
        #expect(bench.values(copy).elementsEqual(x))
        backend.add(left, adding: right)
        #expect(bench.values(right).elementsEqual(zip(x, y).map(+)))
        let squares = x.reduce(0.0) { $0 + Double($1) * Double($1) }
        #expect((backend.sumOfSquares(left) / squares - 1).magnitude < 1e-12)
        backend.zero(left)
        #expect(bench.values(left).allSatisfy { $0 == 0 })
        #expect(bench.sentinelsAreIntact)
    }

    @Test(arguments: [0, 6, 8, 256]) func oneBadElementIsFound(place: Int) throws {
        for bad in [Float.nan, .infinity, -.infinity] {
            let bench = try makeBench()
            var values = [Float](repeating: -1e38, count: 257)
            #expect(bench.backend.isFinite(bench.tensor(values, [257])))
            values[place] = bad
            #expect(!bench.backend.isFinite(bench.tensor(values, [257])))
        }
    }

    @Test func exponentialIsGoodToTwoUlps() {
        for i in stride(from: -87.2, through: 88.2, by: 0.0137) {
            let x = Float(i), exact = Double(x).exponential
            #expect((Double(exponential(x)) / exact - 1).magnitude < 2.4e-7, "exp(\(x))")
        }
        #expect(exponential(0) == 1)
        #expect(exponential(-Float.infinity) == 0 && exponential(-1000) == 0)
        #expect(exponential(Float.nan).isNaN)
    }
}
