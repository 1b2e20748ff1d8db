package import MartletCore

#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// Elements that one task of an elementwise op handles.
let elementsPerTask = 1 << 16

extension CPUBackend {
    package func upload(_ source: UnsafeRawBufferPointer, as dtype: DType, into destination: Tensor) {
        let count = destination.count
        precondition(source.count == count * dtype.byteCount, "upload: \(source.count) bytes for \(destination.shape)")
        guard count > 0, let from = source.baseAddress else { return }
        let to: UnsafeMutablePointer<UInt8> = pointer(at: destination.address)
        workers.run(over: count, by: elementsPerTask) { range, _ in
            convertElements(
                from + range.lowerBound * dtype.byteCount, dtype,
                UnsafeMutableRawPointer(to + range.lowerBound * destination.dtype.byteCount), destination.dtype,
                range.count)
        }
    }

    package func download(_ source: Tensor, into destination: UnsafeMutableRawBufferPointer) {
        precondition(destination.count == source.byteCount, "download: \(destination.count) bytes of \(source.shape)")
        guard source.count > 0, let to = destination.baseAddress else { return }
        let from: UnsafeMutablePointer<UInt8> = pointer(at: source.address)
        memcpy(to, from, source.byteCount)
    }
}

/// Copies `count` elements, converting between the floating-point types; other types only to themselves.
private func convertElements(
    _ source: UnsafeRawPointer, _ from: DType, _ destination: UnsafeMutableRawPointer, _ to: DType, _ count: Int
) {
    switch (from, to) {
    case (.bfloat16, .float32):
        let result = destination.assumingMemoryBound(to: Float.self)
        for i in 0..<count {
            result[i] = Float(bfloat16Bits: source.loadUnaligned(fromByteOffset: 2 * i, as: UInt16.self))
        }
    case (.float16, .float32):
        let result = destination.assumingMemoryBound(to: Float.self)
        for i in 0..<count {
            result[i] = float(float16Bits: source.loadUnaligned(fromByteOffset: 2 * i, as: UInt16.self))
        }
    case (.float32, .bfloat16):
        let result = destination.assumingMemoryBound(to: UInt16.self)
        for i in 0..<count { result[i] = source.loadUnaligned(fromByteOffset: 4 * i, as: Float.self).bfloat16Bits }
    case _ where from == to:
        memcpy(destination, source, count * from.byteCount)
    default:
        preconditionFailure("no conversion from \(from) to \(to) on the CPU")
    }
}

/// The value of an IEEE half (exact): its exponent and fraction moved into a float's and the bias multiplied away.
@inline(__always) func float(float16Bits bits: UInt16) -> Float {
    let wide = UInt32(bits)
    let magnitude = Float(bitPattern: (wide & 0x7FFF) << 13) * 0x1p112
    let special: UInt32 = wide & 0x7C00 == 0x7C00 ? 0x7F80_0000 : 0
    return Float(bitPattern: magnitude.bitPattern | special | (wide & 0x8000) << 16)
}
