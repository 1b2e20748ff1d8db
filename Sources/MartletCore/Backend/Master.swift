/// The numbers of a trained tensor, exact: float32; or, where ops compute in bfloat16, in halves, so that what the ops read is
/// one of them and not a copy.
///
/// A float's 32 bits are (upper << 16) + rest, with upper the nearest bfloat16 and rest from -2^15 to 2^15 - 1: so ties go
/// away from zero (to even, two floats would have the same halves). NaN is one NaN.
package struct Master: Sendable {
    /// What ops compute with: float32, or bfloat16.
    package var value: Tensor
    /// Beside a bfloat16 value: int16.
    package var rest: Tensor?

    package init(value: Tensor, rest: Tensor? = nil) {
        precondition(rest.map { $0.dtype == .int16 && value.dtype == .bfloat16 } ?? (value.dtype == .float32))
        precondition(rest.map { $0.count == value.count } ?? true)
        self.value = value
        self.rest = rest
    }

    package var shape: Shape { value.shape }
    package var count: Int { value.count }
    /// Its tensors.
    package var tensors: [Tensor] { [value] + (rest.map { [$0] } ?? []) }

    @inline(__always) package static func split(_ x: Float) -> (upper: UInt16, rest: Int16) {
        let bits = x.isNaN ? 0x7FC0_0000 : x.bitPattern
        return (UInt16((bits &+ 0x8000) >> 16), Int16(truncatingIfNeeded: bits))
    }

    @inline(__always) package static func joined(_ upper: UInt16, _ rest: Int16) -> Float {
        Float(bitPattern: (UInt32(upper) << 16) &+ UInt32(bitPattern: Int32(rest)))
    }
}

extension Backend {
    /// Copies elements `range` of a master to the host.
    package func download(_ master: Master, _ range: Range<Int>, into x: UnsafeMutableBufferPointer<Float>) {
        precondition(x.count == range.count)
        let value = master.value.reshaped([master.count]).rows(range)
        guard let rest = master.rest?.reshaped([master.count]).rows(range) else {
            return download(value, into: UnsafeMutableRawBufferPointer(x))
        }
        withUnsafeTemporaryAllocation(of: UInt16.self, capacity: range.count) { upper in
            withUnsafeTemporaryAllocation(of: Int16.self, capacity: range.count) { lower in
                download(value, into: UnsafeMutableRawBufferPointer(upper))
                download(rest, into: UnsafeMutableRawBufferPointer(lower))
                for i in x.indices { x[i] = Master.joined(upper[i], lower[i]) }
            }
        }
    }

    /// Copies float32 numbers on the host into a master.
    package func upload(_ source: UnsafeRawBufferPointer, into master: Master) {
        guard let rest = master.rest?.reshaped([master.count]) else {
            return upload(source, as: .float32, into: master.value)
        }
        precondition(source.count == 4 * master.count)
        let piece = 1 << 20, value = master.value.reshaped([master.count])
        var upper = [UInt16](repeating: 0, count: min(piece, master.count)),
            lower = [Int16](repeating: 0, count: upper.count)
        for start in stride(from: 0, to: master.count, by: piece) {
            let range = start..<min(start + piece, master.count)
            for i in range {
                let x = source.loadUnaligned(fromByteOffset: 4 * i, as: Float.self)
                (upper[i - start], lower[i - start]) = Master.split(x)
            }
            upper.withUnsafeBytes { upload(part($0, range.count), as: .bfloat16, into: value.rows(range)) }
            lower.withUnsafeBytes { upload(part($0, range.count), as: .int16, into: rest.rows(range)) }
        }
    }

    /// The numbers of a master.
    package func floats(_ master: Master) -> [Float] {
        [Float](unsafeUninitializedCapacity: master.count) { buffer, count in
            for start in stride(from: 0, to: master.count, by: 1 << 20) {
                let range = start..<min(start + 1 << 20, master.count)
                download(master, range, into: UnsafeMutableBufferPointer(rebasing: buffer[range]))
            }
            count = master.count
        }
    }

    /// Whether every number is zero.
    package func isZero(_ master: Master) -> Bool {
        var numbers = [Float](repeating: 0, count: min(1 << 20, master.count))
        for start in stride(from: 0, to: master.count, by: 1 << 20) {
            let range = start..<min(start + 1 << 20, master.count)
            let isZero = numbers.withUnsafeMutableBufferPointer { buffer in
                let part = UnsafeMutableBufferPointer(rebasing: buffer[..<range.count])
                download(master, range, into: part)
                return part.allSatisfy { $0 == 0 }
            }
            if !isZero { return false }
        }
        return true
    }

    /// The first `count` 16-bit numbers.
    private func part(_ bytes: UnsafeRawBufferPointer, _ count: Int) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: bytes[..<(2 * count)])
    }
}
