import MartletCPU
import MartletCore
import Testing

/// Masters in halves.
@Suite struct MasterTests {
    /// Every upper half with the lower ones around each edge.
    @Test func nothingIsLost() {
        var wrong = 0, far = 0
        for upper in UInt32(0)...0xFFFF {
            for lower: UInt32 in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let x = Float(bitPattern: upper << 16 | lower)
                let (value, rest) = Master.split(x)
                let again = Master.joined(value, rest)
                if x.isNaN {
                    if again.bitPattern != 0x7FC0_0000 || value != 0x7FC0 { wrong += 1 }
                    continue
                }
                if again.bitPattern != x.bitPattern { wrong += 1 }
                // The nearest; of two as near the one further from zero.
                let rounded = Float(bfloat16Bits: value), even = Float(bfloat16Bits: x.bfloat16Bits)
                if rounded.isFinite, (rounded - x).magnitude > (even - x).magnitude { far += 1 }
                if lower != 0x8000, rounded.bitPattern != even.bitPattern { far += 1 }
            }
        }
        #expect(wrong == 0 && far == 0)
    }

    /// AdamW in halves is AdamW in float32, to the last bit.
    @Test(arguments: [0, 1, 257, 70_001], [false, true]) func theOptimizerDoesNotNotice(
        count: Int, inEightBits: Bool
    ) throws {
        let bench = try OpBench(CPUBackend(threads: 2), shapes: ScratchShapes(), byteCount: 1 << 23)
        var stream = RandomStream(seed: UInt64(count))
        let start = (0..<count).map { _ in stream.normal() * 0.02 }
        let gradients = (0..<3).map { _ in (0..<count).map { _ in stream.normal() } }
        func run(inHalves: Bool) -> [Float] {
            let zeros = [UInt8](repeating: 0, count: count), floats = [Float](repeating: 0, count: count)
            let blocks = MomentScales.count(for: count), scales = [Float](repeating: 0, count: blocks)
            func moment() -> Tensor { inEightBits ? bench.bytes(zeros) : bench.tensor(floats, [count]) }
            let master = bench.master(start, inHalves: inHalves)
            let tensors = AdamWParameter(
                master: master, gradient: bench.tensor(floats, [count]), firstMoment: moment(), secondMoment: moment(),
                scales: inEightBits
                    ? MomentScales(first: bench.tensor(scales, [blocks]), second: bench.tensor(scales, [blocks])) : nil,
                weightDecay: 0.1)
            for (step, gradient) in gradients.enumerated() {
                gradient.withUnsafeBytes { bench.backend.upload($0, as: .float32, into: tensors.gradient) }
                bench.backend.adamW([tensors], AdamWSettings(), step: step + 1, learningRate: 1e-3, gradientScale: 0.5)
            }
            #expect(bench.sentinelsAreIntact)
            return bench.backend.floats(master)
        }
        let expected = run(inHalves: false)
        #expect(run(inHalves: true) == expected && (expected != start || count == 0))
        let master = bench.master(start, inHalves: true)
        #expect(bench.backend.floats(master) == start)
        expected.withUnsafeBytes { bench.backend.upload($0, into: master) }
        #expect(bench.backend.floats(master) == expected)
        #expect(bench.backend.isZero(master) == (count == 0))
    }
}
