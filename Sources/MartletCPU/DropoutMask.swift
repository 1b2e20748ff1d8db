import MartletCore

/// The mask of a `Dropout`, sixteen elements at a time.
struct DropoutMask {
    private let key: SIMD2<UInt32>
    private let threshold: UInt32
    private let scale: Float

    /// nil where nothing would be dropped.
    init?(_ dropout: Dropout?) {
        guard let dropout, dropout.probability > 0 else { return nil }
        key = Philox(seed: dropout.key).key
        // word >> 8 is a 24-bit fraction; it is at least p exactly when the integer is at least ceil(p 2^24).
        threshold = UInt32((Double(min(dropout.probability, 1)) * 0x1p24).rounded(.up))
        scale = 1 / (1 - dropout.probability)
    }

    /// x *= mask, for `count` elements of `row` from `column` on in an input of `width` columns.
    func apply(_ x: Floats, _ count: Int, row: Int, column: Int = 0, width: Int) {
        let first = row * width + column
        var done = 0
        var index = first & ~3  // the counter that holds the first element
        while done < count {
            let words = block(UInt64(index) / 4)
            let skip = max(0, first - index)
            let take = min(16 - skip, count - done)
            if take == 16 {
                let values = UnsafeMutableRawPointer(x + done).loadUnaligned(as: SIMD16<Float>.self)
                let kept = (values * scale).replacing(with: 0, where: (words &>> 8) .< threshold)
                UnsafeMutableRawPointer(x + done).storeBytes(of: kept, as: SIMD16<Float>.self)
            } else {
                for i in 0..<take { x[done + i] = words[skip + i] >> 8 < threshold ? 0 : x[done + i] * scale }
            }
            done += take
            index += 16
        }
    }

    /// x *= mask for rows `rows[i]` (each times nothing else) of a [count, width] block at `x`.
    func apply(rows count: Int, _ x: Floats, width: Int, firstRow: Int) {
        for row in 0..<count { apply(x + row * width, width, row: firstRow + row, width: width) }
    }

    /// The sixteen words of counters `counter ..< counter + 4`.
    private func block(_ counter: UInt64) -> SIMD16<UInt32> {
        let low = SIMD4<UInt64>(0, 1, 2, 3) &+ counter
        let mask = SIMD4<UInt64>(repeating: 0xFFFF_FFFF)
        var c0 = low & mask, c1 = low &>> 32, c2 = SIMD4<UInt64>.zero, c3 = SIMD4<UInt64>.zero
        var k0 = UInt32(key.x), k1 = UInt32(key.y)
        for _ in 0..<10 {
            let p0 = c0 &* SIMD4(repeating: 0xD251_1F53)
            let p1 = c2 &* SIMD4(repeating: 0xCD9E_8D57)
            c0 = (p1 &>> 32) ^ c1 ^ SIMD4(repeating: UInt64(k0))
            c2 = (p0 &>> 32) ^ c3 ^ SIMD4(repeating: UInt64(k1))
            c1 = p1 & mask
            c3 = p0 & mask
            k0 = k0 &+ 0x9E37_79B9
            k1 = k1 &+ 0xBB67_AE85
        }
        // Pairs of words share a 64-bit lane, so two interleavings put the words of each counter side by side.
        let left = unsafeBitCast(c0 | c1 &<< 32, to: SIMD8<UInt32>.self)
        let right = unsafeBitCast(c2 | c3 &<< 32, to: SIMD8<UInt32>.self)
        return SIMD16(
            left[0], left[1], right[0], right[1], left[2], left[3], right[2], right[3],
            left[4], left[5], right[4], right[5], left[6], left[7], right[6], right[7])
    }
}
