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
        if first & 3 != 0 {
            done = min(count, 4 - first & 3)
            apply(x, done, block(UInt64(first) / 4), from: first & 3)
        }
        var counter = UInt64(first + done) / 4
        while done &+ 16 <= count {
            let words = block(counter)
            let place = UnsafeMutableRawPointer(x + done)
            let values = place.loadUnaligned(as: SIMD16<Float>.self) * scale
            // All ones where kept: the difference is negative, as an integer of 32 bits, from the threshold on.
            let kept = SIMD16<UInt32>.zero &- ((threshold &- 1 &- (words &>> 8)) &>> 31)
            place.storeBytes(of: unsafeBitCast(values, to: SIMD16<UInt32>.self) & kept, as: SIMD16<UInt32>.self)
            done &+= 16
            counter &+= 4
        }
        if done < count { apply(x + done, count - done, block(counter), from: 0) }
    }

    /// x *= mask for a [count, width] block.
    func apply(rows count: Int, _ x: Floats, width: Int, firstRow: Int) {
        for row in 0..<count { apply(x + row * width, width, row: firstRow + row, width: width) }
    }

    private func apply(_ x: Floats, _ count: Int, _ words: SIMD16<UInt32>, from first: Int) {
        for i in 0..<count { x[i] = words[first + i] >> 8 < threshold ? 0 : x[i] * scale }
    }

    /// The sixteen words of counters `counter ..< counter + 4`.
    @inline(__always) private func block(_ counter: UInt64) -> SIMD16<UInt32> {
        let low = SIMD4<UInt64>(repeating: 0xFFFF_FFFF), words = rounds(counter)
        // Pairs of words share a 64-bit lane, so that the words of each counter come side by side.
        let left = (words.0 & low) | words.1 &<< 32, right = (words.2 & low) | words.3 &<< 32
        let pairs = SIMD8(left[0], right[0], left[1], right[1], left[2], right[2], left[3], right[3])
        return unsafeBitCast(pairs, to: SIMD16<UInt32>.self)
    }

    /// The four words of each of four counters, one counter a lane. Only the low halves of the lanes are meant; what
    /// gathers in the high halves falls away, so that each product is one 32 x 32 bit multiplication. A call on purpose:
    /// inlined, the shuffles of `block` would be spread over the rounds.
    @inline(never) private func rounds(
        _ counter: UInt64
    ) -> (SIMD4<UInt64>, SIMD4<UInt64>, SIMD4<UInt64>, SIMD4<UInt64>) {
        let mask = SIMD4<UInt64>(repeating: 0xFFFF_FFFF)
        var c0 = SIMD4<UInt64>(0, 1, 2, 3) &+ counter
        var c1 = c0 &>> 32, c2 = SIMD4<UInt64>.zero, c3 = SIMD4<UInt64>.zero
        var k0 = SIMD4(repeating: UInt64(key.x)), k1 = SIMD4(repeating: UInt64(key.y))
        for _ in 0..<10 {
            let p0 = (c0 & mask) &* SIMD4(repeating: 0xD251_1F53)
            let p1 = (c2 & mask) &* SIMD4(repeating: 0xCD9E_8D57)
            c0 = (p1 &>> 32) ^ c1 ^ k0
            c2 = (p0 &>> 32) ^ c3 ^ k1
            c1 = p1
            c3 = p0
            k0 = k0 &+ 0x9E37_79B9
            k1 = k1 &+ 0xBB67_AE85
        }
        return (c0, c1, c2, c3)
    }
}
