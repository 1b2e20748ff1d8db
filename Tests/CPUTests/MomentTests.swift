import MartletCPU
import MartletCore
import MartletTestSupport
import Testing

/// AdamW with moments in 8 bits.
@Suite struct MomentTests {
    /// The paper's table in double: 10^e (0.1 + 0.9 (k + 1/2) / n) for n steps of each decade, 0 and 1.
    static func table(isSigned: Bool) -> [Double] {
        var values = [0.0, 1.0]
        for decade in 0..<7 {
            let n = (isSigned ? 1 : 2) << decade, power = 10.0.raised(to: Double(decade - 6))
            for k in 0..<n {
                let value = power * (0.1 + 0.9 * (Double(k) + 0.5) / Double(n))
                values += isSigned ? [value, -value] : [value]
            }
        }
        return values.sorted()
    }

    @Test(arguments: [true, false]) func theTableIsThePapers(isSigned: Bool) {
        let table = isSigned ? MomentTable.signed : .unsigned, expected = MomentTests.table(isSigned: isSigned)
        #expect(table.values.count == 256 && table.bounds.count == 256 && expected.count == 256)
        for (value, wanted) in zip(table.values, expected) {
            #expect(abs(Double(value) - wanted) <= 1e-6 * abs(wanted), "\(value) for \(wanted)")
        }
        for (value, bound) in zip(table.values, table.bounds) {
            #expect(value < bound || (value == 0 && bound == 0 && !isSigned))
        }
        for (bound, next) in zip(table.bounds, table.values.dropFirst()) { #expect(bound < next) }
    }

    /// A step after which the moments are g and g^2, as they are stored.
    private func stored(_ gradient: [Float]) throws -> (bench: OpBench, tensors: AdamWParameter) {
        let bench = try OpBench(CPUBackend(threads: 2), shapes: ScratchShapes()), n = gradient.count
        func zeros() -> Tensor { bench.bytes([UInt8](repeating: 0, count: n)) }
        func scales() -> Tensor {
            bench.tensor(
                [Float](repeating: 0, count: MomentScales.count(for: n)), [MomentScales.count(for: n)], .float32)
        }
        let tensors = AdamWParameter(
            master: Master(value: bench.tensor([Float](repeating: 1, count: n), [n])),
            gradient: bench.tensor(gradient, [n]),
            firstMoment: zeros(), secondMoment: zeros(), scales: MomentScales(first: scales(), second: scales()),
            weightDecay: 0)
        bench.backend.adamW(
            [tensors], AdamWSettings(beta1: 0, beta2: 0), step: 1, learningRate: 0.5, gradientScale: 1)
        #expect(bench.sentinelsAreIntact)
        return (bench, tensors)
    }

    /// Exactly at every bound and just above it.
    @Test func theNearestIsTaken() throws {
        let bounds = MomentTable.signed.bounds.dropLast().map { $0 }
        for (gradient, above) in [(bounds, 0), (bounds.map(\.nextUp), 1)] {
            let (bench, tensors) = try stored(gradient + [1])
            let codes = bench.bytes(tensors.firstMoment).map(Int.init)
            #expect(codes == (0..<255).map { $0 + above } + [255])
        }
    }

    /// No value is further off than half a step of its decade, and each block has its own scale.
    @Test(arguments: [1, 256, 257, 1000]) func roundTrip(count: Int) throws {
        var stream = RandomStream(seed: UInt64(count))
        // Nine decades below each block's own size.
        let gradient = (0..<count).map { i in
            stream.normal() * Float(10.0.raised(to: Double(-9 * stream.uniform()) + Double(3 * (i / 256))))
        }
        let (bench, tensors) = try stored(gradient), scales = try #require(tensors.scales)
        let moments: [(codes: Tensor, scale: Tensor, table: MomentTable, steps: Int, values: [Float])] = [
            (tensors.firstMoment, scales.first, .signed, 64, gradient),
            (tensors.secondMoment, scales.second, .unsigned, 128, gradient.map { $0 * $0 }),
        ]
        for (tensor, scale, table, steps, values) in moments {
            let codes = bench.bytes(tensor), scales = bench.values(scale)
            for (block, size) in scales.enumerated() {
                let part = block * 256..<min(count, block * 256 + 256)
                #expect(size == part.map { values[$0].magnitude }.max())
                for i in part {
                    let x = Double(values[i]) / Double(size), found = Double(table.values[Int(codes[i])])
                    var power = 1.0, n = steps
                    while x.magnitude <= power / 10, power > 2e-6 { (power, n) = (power / 10, n / 2) }
                    // The smallest second moments are held above 0.
                    let allowed = max(0.45 * power / Double(n), steps == 128 ? 3.25e-7 : 0)
                    #expect(abs(found - x) <= allowed * 1.000_01, "\(x) became \(found)")
                    #expect(steps == 64 || codes[i] > 0 || x == 0)
                }
            }
        }
    }

    @Test(arguments: OpTests.seeds) func aStepIsTheFormula(seed: UInt64) throws {
        for (n, step) in [(1, 1), (257, 2), (1000, 1000)] {
            try judge(.adamW8Bit(seed: seed, n: n, step: step), by: MomentTests.formula)
        }
    }

    /// AdamW in double, from decoded moments to the codes that are nearest.
    private static func formula(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        var inputs = x, results: [String: [Double]] = [:]
        let tables = [("first", table(isSigned: true)), ("second", table(isSigned: false))]
        for (name, table) in tables {
            inputs[name] = (c.ids[name] ?? []).enumerated().map { i, code in
                table[Int(code)] * (x[name + "Scale"] ?? [])[i / 256]
            }
        }
        let new = Formulas.adamW(c, inputs)
        results["parameter"] = new["parameter"]
        for (name, table) in tables {
            let values = new[name] ?? []
            let scales = stride(from: 0, to: values.count, by: 256).map { start in
                values[start..<min(start + 256, values.count)].reduce(0) { max($0, $1.magnitude) }
            }
            results[name + "Scale"] = scales
            results[name] = values.enumerated().map { i, value in
                let scaled = scales[i / 256] > 0 ? value / scales[i / 256] : 0
                let nearest = table.indices.min { abs(table[$0] - scaled) < abs(table[$1] - scaled) } ?? 0
                return Double(name == "second" && scaled > 0 ? max(nearest, 1) : nearest)
            }
        }
        return results
    }

    @Test func notANumberStays() throws {
        var gradient = [Float](repeating: 1, count: 300)
        gradient[7] = .nan
        let (bench, tensors) = try stored(gradient), scales = try #require(tensors.scales)
        #expect(bench.values(tensors.master.value).map(\.isNaN) == gradient.map(\.isNaN))
        for scale in [scales.first, scales.second] { #expect(bench.values(scale).map(\.isNaN) == [true, false]) }
    }

    /// Second moments of elements that are far smaller than their neighbours do not vanish below first moments that are
    /// still there: the update stays of AdamW's own size.
    @Test func smallNeighboursAreNotBlownUp() throws {
        let n = 256, gradient = (0..<n).map { $0 == 0 ? Float(1) : 1e-4 }
        let (bench, tensors) = try stored(gradient)
        (0..<n).map { $0 == 0 ? Float(1) : 0 }.withUnsafeBytes {
            bench.backend.upload($0, as: .float32, into: tensors.gradient)
        }
        let before = bench.values(tensors.master.value)
        bench.backend.adamW([tensors], AdamWSettings(), step: 1000, learningRate: 0.5, gradientScale: 1)
        for (a, b) in zip(before, bench.values(tensors.master.value)) { #expect(abs(a - b) < 1) }
    }
}
