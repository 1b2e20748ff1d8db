/// The numbers that the bytes of an 8-bit moment stand for: dynamic quantisation (Dettmers et al. 2022,
/// https://arxiv.org/abs/2110.02861).
///
/// 0, 1, and in each of the seven decades below 1 the middles of equal steps: 64 of either sign in the highest decade,
/// half as many in each below; 128 where nothing is negative. Float arithmetic in a fixed order, as in optimizer.cu.
package struct MomentTable: Sendable {
    package static let signed = MomentTable((0..<256).map { MomentTable.signedValue($0) })
    package static let unsigned = MomentTable((0..<256).map { MomentTable.unsignedValue($0) })

    /// By code, ascending.
    package let values: [Float]
    /// Code c is for what lies above `bounds[c - 1]` and not above `bounds[c]`, which is nearest to its value; the last is
    /// infinity.
    package let bounds: [Float]
    /// The code of the lowest number that has these upper 15 bits; the others are at most `reach` codes above it.
    let starts: [UInt8]
    static let reach = 2

    private init(_ values: [Float]) {
        self.values = values
        var bounds = zip(values, values.dropFirst()).map { ($0 + $1) * 0.5 }
        // A second moment is divided by: what is not 0 must not become 0 (Li et al. 2023, https://arxiv.org/abs/2309.01507).
        if values[0] == 0 { bounds[0] = 0 }
        self.bounds = bounds + [.infinity]
        starts = (0..<UInt32(1 << 15)).map { upper in
            // Of negative numbers the one with all lower bits set is the lowest.
            let lowest = Float(bitPattern: upper << 17 | (upper >> 14) * 0x1FFFF)
            return UInt8(bounds.count { $0 < lowest })
        }
    }

    private static func signedValue(_ code: Int) -> Float {
        if code == 127 { return 0 }
        return code < 127 ? -magnitude(127 - code, top: 6) : magnitude(code - 127, top: 6)
    }

    private static func unsignedValue(_ code: Int) -> Float { code == 0 ? 0 : magnitude(code + 1, top: 7) }

    /// Decade d, of `top` + 1, has the 2^d places from 2^d on; the place behind the last is 1.
    private static func magnitude(_ place: Int, top: Int) -> Float {
        let decade = Int.bitWidth - 1 - place.leadingZeroBitCount
        guard decade <= top else { return 1 }
        let power = (decade..<top).reduce(Float(1)) { power, _ in power * 0.1 }
        let middle = (Float(place) + 0.5) / Float(1 << decade) - 1
        return power * (0.1 + 0.9 * middle)
    }
}
