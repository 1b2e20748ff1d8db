/// The element type of a tensor, named as safetensors names it.
public enum DType: String, Sendable, CaseIterable {
    case float32 = "F32"
    case bfloat16 = "BF16"
    case float16 = "F16"
    case int16 = "I16"
    case int32 = "I32"
    case int64 = "I64"
    case uint8 = "U8"

    /// "bf16"
    package var shortName: String {
        switch self {
        case .float32: "fp32"
        case .bfloat16: "bf16"
        case .float16: "fp16"
        default: rawValue.lowercased()
        }
    }

    /// Bytes of one element.
    public var byteCount: Int {
        switch self {
        case .float32, .int32: 4
        case .bfloat16, .float16, .int16: 2
        case .int64: 8
        case .uint8: 1
        }
    }
}

extension Float {
    /// The value of a bfloat16 bit pattern (exact).
    @inlinable package init(bfloat16Bits bits: UInt16) {
        self.init(bitPattern: UInt32(bits) << 16)
    }

    /// This value rounded to bfloat16, to nearest, ties to even; NaN stays NaN.
    @inlinable package var bfloat16Bits: UInt16 {
        if isNaN { return 0x7FC0 | UInt16(truncatingIfNeeded: bitPattern >> 16) }
        let rounding = 0x7FFF &+ ((bitPattern >> 16) & 1)
        return UInt16(truncatingIfNeeded: (bitPattern &+ rounding) >> 16)
    }
}
