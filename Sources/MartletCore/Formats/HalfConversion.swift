// Conversions between the three floating dtypes of checkpoints: exact, rounding to nearest with ties to even, NaN staying
// NaN, without special instructions. The loops have no branches, so that the compiler makes vector instructions of them.

extension DType {
    /// Whether the elements are floating-point numbers.
    package var isFloat: Bool { self == .float32 || isHalf }
    /// Floating-point numbers of 16 bits.
    package var isHalf: Bool { self == .bfloat16 || self == .float16 }
}

/// Elements of a floating `dtype` as float32; any alignment. `destination` has at least as many elements.
package func convertToFloat(
    _ source: UnsafeRawBufferPointer, as dtype: DType, into destination: UnsafeMutableBufferPointer<Float>
) {
    let count = source.count / dtype.byteCount
    precondition(dtype.isFloat && destination.count >= count)
    guard let input = source.baseAddress, let output = UnsafeMutableRawPointer(destination.baseAddress), count > 0
    else { return }
    switch dtype {
    case .float32: output.copyMemory(from: input, byteCount: count * 4)
    case .bfloat16: forEach(count, input, output) { (bits: UInt16) in UInt32(bits) &<< 16 }
    default: forEach(count, input, output) { (bits: UInt16) in widenFloat16(bits) }
    }
}

/// float32 as elements of a floating `dtype`; any alignment of `destination`.
package func convertFromFloat(
    _ source: UnsafeBufferPointer<Float>, as dtype: DType, into destination: UnsafeMutableRawBufferPointer
) {
    let count = source.count
    precondition(dtype.isFloat && destination.count >= count * dtype.byteCount)
    guard let input = UnsafeRawPointer(source.baseAddress), let output = destination.baseAddress, count > 0 else {
        return
    }
    switch dtype {
    case .float32: output.copyMemory(from: input, byteCount: count * 4)
    case .bfloat16: forEach(count, input, output) { (bits: UInt32) in narrowToBFloat16(bits) }
    default: forEach(count, input, output) { (bits: UInt32) in narrowToFloat16(bits) }
    }
}

/// Whether any element of a floating `dtype` is infinite or not a number (all exponent bits set); false for integers.
///
/// Eight bytes at a time: of an exponent of ones, adding one to its last bit carries into the (cleared) sign bit.
package func containsNonFinite(_ bytes: UnsafeRawBufferPointer, as dtype: DType) -> Bool {
    let exponents: UInt64, ones: UInt64, signs: UInt64
    switch dtype {
    case .float32: (exponents, ones, signs) = (0x7F80_0000_7F80_0000, 0x0080_0000_0080_0000, 0x8000_0000_8000_0000)
    case .bfloat16: (exponents, ones, signs) = (0x7F80_7F80_7F80_7F80, 0x0080_0080_0080_0080, 0x8000_8000_8000_8000)
    case .float16: (exponents, ones, signs) = (0x7C00_7C00_7C00_7C00, 0x0400_0400_0400_0400, 0x8000_8000_8000_8000)
    default: return false
    }
    guard let base = bytes.baseAddress else { return false }
    let wordCount = bytes.count / 8
    var start = 0
    while start < wordCount {
        let end = min(start &+ 4096, wordCount)
        var carries: UInt64 = 0, i = start
        while i < end {
            carries |= ((base + i &* 8).loadUnaligned(as: UInt64.self) & exponents) &+ ones
            i &+= 1
        }
        if carries & signs != 0 { return true }
        start = end
    }
    var tail: UInt64 = 0
    withUnsafeMutableBytes(of: &tail) {
        $0.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[(wordCount * 8)...]))
    }
    return ((tail & exponents) &+ ones) & signs != 0
}

/// The largest magnitude among elements of a floating `dtype`. Without the sign, bit patterns are in the order of the numbers.
package func largestMagnitude(_ bytes: UnsafeRawBufferPointer, as dtype: DType) -> Float {
    precondition(dtype.isFloat)
    switch dtype {
    case .bfloat16: return Float(bfloat16Bits: largest(bytes, ~(1 << 15) as UInt16))
    case .float16: return Float(bitPattern: widenFloat16(largest(bytes, ~(1 << 15))))
    default: return Float(bitPattern: largest(bytes, ~(1 << 31)))
    }
}

@inline(__always)
private func largest<Bits: FixedWidthInteger & BitwiseCopyable>(_ bytes: UnsafeRawBufferPointer, _ mask: Bits) -> Bits {
    guard let base = bytes.baseAddress else { return 0 }
    let size = MemoryLayout<Bits>.size, count = bytes.count / size
    var most: Bits = 0, i = 0
    while i < count {
        most = max(most, (base + i &* size).loadUnaligned(as: Bits.self) & mask)
        i &+= 1
    }
    return most
}

@inline(__always)
private func forEach<From: BitwiseCopyable, To: BitwiseCopyable>(
    _ count: Int, _ input: UnsafeRawPointer, _ output: UnsafeMutableRawPointer, _ convert: (From) -> To
) {
    let from = MemoryLayout<From>.size, to = MemoryLayout<To>.size
    var i = 0
    while i < count {
        (output + i &* to).storeBytes(of: convert((input + i &* from).loadUnaligned(as: From.self)), as: To.self)
        i &+= 1
    }
}

@inline(__always)
private func narrowToBFloat16(_ bits: UInt32) -> UInt16 {
    let rounded = (bits &+ 0x7FFF &+ ((bits &>> 16) & 1)) &>> 16
    let quiet = (bits &>> 16) | 0x7FC0
    return UInt16(truncatingIfNeeded: bits & 0x7FFF_FFFF > 0x7F80_0000 ? quiet : rounded)
}

/// Shifted into place, a float16 is a float32 that is 2^112 too small, subnormals included; the product is exact.
@inline(__always)
private func widenFloat16(_ half: UInt16) -> UInt32 {
    let bits = UInt32(half), sign = (bits & 0x8000) &<< 16, rest = (bits & 0x7FFF) &<< 13
    let scaled = (Float(bitPattern: rest) * 0x1p112).bitPattern
    return sign | (rest >= 0x0F80_0000 ? rest | 0x7F80_0000 : scaled)
}

/// Normal results round on the bits; subnormal ones by adding 0.5, whose last bit is worth 2^-24, float16's smallest step.
@inline(__always)
private func narrowToFloat16(_ bits: UInt32) -> UInt16 {
    let sign = (bits &>> 16) & 0x8000, rest = bits & 0x7FFF_FFFF
    let normal = (rest &+ 0xFFF &+ ((rest &>> 13) & 1) &- 0x3800_0000) &>> 13
    let subnormal = (Float(bitPattern: rest) + 0.5).bitPattern &- 0x3F00_0000
    let finite = rest < 0x3880_0000 ? subnormal : normal
    let bounded = rest >= 0x477F_F000 ? 0x7C00 : finite
    let half = rest > 0x7F80_0000 ? 0x7E00 | ((rest &>> 13) & 0x3FF) : bounded
    return UInt16(truncatingIfNeeded: sign | half)
}
