// Conversions between the three floating dtypes of checkpoints, eight elements at a time, in integer arithmetic, so that
// they are exact, round to nearest with ties to even, and need no special instruction. NaN stays NaN.

extension DType {
    /// Whether the elements are floating-point numbers.
    package var isFloat: Bool { self == .float32 || self == .bfloat16 || self == .float16 }
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
    case .bfloat16: forEachEight(count, input, output) { (bits: SIMD8<UInt16>) in widenBFloat16(bits) }
    default: forEachEight(count, input, output) { (bits: SIMD8<UInt16>) in widenFloat16(bits) }
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
    case .bfloat16: forEachEight(count, input, output) { (bits: SIMD8<UInt32>) in narrowToBFloat16(bits) }
    default: forEachEight(count, input, output) { (bits: SIMD8<UInt32>) in narrowToFloat16(bits) }
    }
}

/// Whether any element of a floating `dtype` is infinite or not a number (all exponent bits set); false for integers.
package func containsNonFinite(_ bytes: UnsafeRawBufferPointer, as dtype: DType) -> Bool {
    switch dtype {
    case .float32: anyElement(bytes, hasAllOf: 0x7F80_0000 as UInt32)
    case .bfloat16: anyElement(bytes, hasAllOf: 0x7F80 as UInt16)
    case .float16: anyElement(bytes, hasAllOf: 0x7C00 as UInt16)
    default: false
    }
}

private func anyElement<Bits: FixedWidthInteger & SIMDScalar>(
    _ bytes: UnsafeRawBufferPointer, hasAllOf mask: Bits
) -> Bool {
    let size = MemoryLayout<Bits>.size, count = bytes.count / size
    guard let base = bytes.baseAddress else { return false }
    let masks = SIMD16<Bits>(repeating: mask)
    var found = SIMDMask<SIMD16<Bits>.MaskStorage>(repeating: false)
    var i = 0
    while i + 16 <= count {
        let bits = (base + i * size).loadUnaligned(as: SIMD16<Bits>.self)
        found .|= (bits & masks) .== masks
        i += 16
    }
    if any(found) { return true }
    while i < count {
        if (base + i * size).loadUnaligned(as: Bits.self) & mask == mask { return true }
        i += 1
    }
    return false
}

@inline(__always)
private func forEachEight<From: FixedWidthInteger & SIMDScalar, To: FixedWidthInteger & SIMDScalar>(
    _ count: Int, _ input: UnsafeRawPointer, _ output: UnsafeMutableRawPointer, _ convert: (SIMD8<From>) -> SIMD8<To>
) {
    let from = MemoryLayout<From>.size, to = MemoryLayout<To>.size
    var i = 0
    while i + 8 <= count {
        let converted = convert((input + i * from).loadUnaligned(as: SIMD8<From>.self))
        (output + i * to).storeBytes(of: converted, as: SIMD8<To>.self)
        i += 8
    }
    while i < count {
        let converted = convert(SIMD8(repeating: (input + i * from).loadUnaligned(as: From.self)))[0]
        (output + i * to).storeBytes(of: converted, as: To.self)
        i += 1
    }
}

@inline(__always)
private func widenBFloat16(_ bits: SIMD8<UInt16>) -> SIMD8<UInt32> { SIMD8<UInt32>(truncatingIfNeeded: bits) &<< 16 }

@inline(__always)
private func narrowToBFloat16(_ bits: SIMD8<UInt32>) -> SIMD8<UInt16> {
    let rounded = (bits &+ 0x7FFF &+ ((bits &>> 16) & 1)) &>> 16
    let quiet = (bits &>> 16) | 0x7FC0
    return SIMD8<UInt16>(truncatingIfNeeded: rounded.replacing(with: quiet, where: (bits & 0x7FFF_FFFF) .> 0x7F80_0000))
}

/// Shifted into place, a float16 is a float32 that is 2^112 too small, subnormals included; the product is exact.
@inline(__always)
private func widenFloat16(_ half: SIMD8<UInt16>) -> SIMD8<UInt32> {
    let bits = SIMD8<UInt32>(truncatingIfNeeded: half)
    let sign = (bits & 0x8000) &<< 16, rest = (bits & 0x7FFF) &<< 13
    let scaled = unsafeBitCast(unsafeBitCast(rest, to: SIMD8<Float>.self) * 0x1p112, to: SIMD8<UInt32>.self)
    let isSpecial = rest .>= 0x0F80_0000
    return sign | scaled.replacing(with: rest | 0x7F80_0000, where: isSpecial)
}

/// Normal results round on the bits; subnormal ones by adding 0.5, whose last bit is worth 2^-24, float16's smallest step.
@inline(__always)
private func narrowToFloat16(_ bits: SIMD8<UInt32>) -> SIMD8<UInt16> {
    let sign = (bits &>> 16) & 0x8000, rest = bits & 0x7FFF_FFFF
    let normal = (rest &+ 0xFFF &+ ((rest &>> 13) & 1) &- 0x3800_0000) &>> 13
    let sum = unsafeBitCast(unsafeBitCast(rest, to: SIMD8<Float>.self) + 0.5, to: SIMD8<UInt32>.self)
    var half = normal.replacing(with: sum &- 0x3F00_0000, where: rest .< 0x3880_0000)
    half.replace(with: 0x7C00, where: rest .>= 0x477F_F000)
    half.replace(with: 0x7E00 | ((rest &>> 13) & 0x3FF), where: rest .> 0x7F80_0000)
    return SIMD8<UInt16>(truncatingIfNeeded: sign | half)
}
