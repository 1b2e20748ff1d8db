import MartletCore
import Testing

@Suite struct HalfConversionTests {
    private func widen<Bits: BitwiseCopyable>(_ bits: [Bits], _ dtype: DType) -> [Float] {
        let count = bits.count * MemoryLayout<Bits>.size / dtype.byteCount
        return [Float](unsafeUninitializedCapacity: count) { buffer, initialized in
            bits.withUnsafeBytes { convertToFloat($0, as: dtype, into: buffer) }
            initialized = count
        }
    }

    private func narrow(_ values: [Float], _ dtype: DType) -> [UInt16] {
        [UInt16](unsafeUninitializedCapacity: values.count) { buffer, initialized in
            values.withUnsafeBufferPointer {
                convertFromFloat($0, as: dtype, into: UnsafeMutableRawBufferPointer(buffer))
            }
            initialized = values.count
        }
    }

    @Test func everyFloat16WidensExactly() {
        let all = (0...UInt16.max).map { $0 }, widened = widen(all, .float16)
        for bits in all {
            let exact = Float(Float16(bitPattern: bits)), found = widened[Int(bits)]
            #expect(exact.isNaN ? found.isNaN : exact.bitPattern == found.bitPattern, "\(bits)")
        }
    }

    @Test func everyBFloat16WidensAndNarrowsBack() {
        let all = (0...UInt16.max).map { $0 }, widened = widen(all, .bfloat16), back = narrow(widened, .bfloat16)
        for bits in all {
            #expect(widened[Int(bits)].bitPattern == UInt32(bits) << 16)
            if !widened[Int(bits)].isNaN { #expect(back[Int(bits)] == bits) }
        }
    }

    /// Random patterns, and the neighbourhood of every boundary: ties, overflow, subnormals, infinities, NaN.
    @Test func narrowingRoundsToNearestEven() {
        var stream = RandomStream(seed: 1),
            patterns = (0..<20000).map { _ in UInt32(truncatingIfNeeded: stream.next()) }
        for _ in 0..<20000 { patterns.append(0x3300_0000 + UInt32(truncatingIfNeeded: stream.next() % 0x1500_0000)) }
        let edges: [UInt32] = [
            0, 0x3300_0000, 0x3380_0000, 0x3880_0000, 0x477F_E000, 0x477F_F000, 0x7F7F_0000, 0x7F7F_8000, 0x7F80_0000,
            0x7F80_0001, 0x7FC0_0000,
        ]
        for edge in edges { for offset: Int64 in -3...3 { patterns.append(UInt32(max(0, Int64(edge) + offset))) } }
        for i in 0..<4096 as Range<UInt32> {
            patterns += [0x3F80_0000 + i << 12, 0x3F80_8000 + i << 16, 0x3380_0000 + i << 11]
        }
        patterns += patterns.map { $0 | 0x8000_0000 }
        let values = patterns.map { Float(bitPattern: $0) }
        let half = narrow(values, .float16), brain = narrow(values, .bfloat16)
        for (i, value) in values.enumerated() {
            if value.isNaN {
                #expect(Float16(bitPattern: half[i]).isNaN && Float(bfloat16Bits: brain[i]).isNaN)
            } else if half[i] != Float16(value).bitPattern || brain[i] != value.bfloat16Bits {
                Issue.record("\(patterns[i]): \(half[i]) \(brain[i])")
            }
        }
    }

    @Test(arguments: [DType.float32, .bfloat16, .float16], [0, 1, 7, 8, 9, 33])
    func anyCountAndAlignment(_ dtype: DType, count: Int) {
        let values = (0..<count).map { Float($0) - 3.5 }
        var bytes = [UInt8](repeating: 0xAB, count: count * dtype.byteCount + 2)
        bytes.withUnsafeMutableBytes { buffer in
            let inner = UnsafeMutableRawBufferPointer(rebasing: buffer[1..<buffer.count - 1])
            values.withUnsafeBufferPointer { convertFromFloat($0, as: dtype, into: inner) }
        }
        #expect(bytes.first == 0xAB && bytes.last == 0xAB)
        #expect(widen(Array(bytes[1..<bytes.count - 1]), dtype) == values)
    }

    @Test(arguments: [DType.float32, .bfloat16, .float16], [1, 15, 16, 17, 50])
    func theLargestMagnitudeIsFoundAnywhere(_ dtype: DType, count: Int) {
        for (rest, most) in [(-0.5, -3), (0x1p-16, 0x1p-15), (-0.0, 0.0)] as [(Float, Float)] {
            for place in [0, count / 2, count - 1] {
                var values = [Float](repeating: rest, count: count)
                values[place] = most
                var bytes = [UInt8](repeating: 0, count: count * dtype.byteCount)
                bytes.withUnsafeMutableBytes { buffer in
                    values.withUnsafeBufferPointer { convertFromFloat($0, as: dtype, into: buffer) }
                }
                #expect(bytes.withUnsafeBytes { largestMagnitude($0, as: dtype) } == abs(most))
            }
        }
        #expect([UInt8]().withUnsafeBytes { largestMagnitude($0, as: dtype) } == 0)
    }

    @Test(arguments: [DType.float32, .bfloat16, .float16], [1, 15, 16, 17, 50])
    func nonFiniteIsFoundAnywhere(_ dtype: DType, count: Int) {
        for bad in [Float.nan, .infinity, -.infinity] {
            for place in [nil, 0, count / 2, count - 1] as [Int?] {
                var values = [Float](repeating: -1.5, count: count)
                if let place { values[place] = bad }
                var bytes = [UInt8](repeating: 0, count: count * dtype.byteCount)
                bytes.withUnsafeMutableBytes { buffer in
                    values.withUnsafeBufferPointer { convertFromFloat($0, as: dtype, into: buffer) }
                }
                #expect(bytes.withUnsafeBytes { containsNonFinite($0, as: dtype) } == (place != nil))
            }
        }
    }
}
