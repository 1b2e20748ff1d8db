/// Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC11).
///
/// The same key and counter give the same bits on every machine and in every order, so dropout masks need not be
/// kept for the backward pass and do not depend on tiling.
package struct Philox: Sendable {
    package let key: SIMD2<UInt32>

    package init(seed: UInt64) {
        key = SIMD2(UInt32(truncatingIfNeeded: seed), UInt32(truncatingIfNeeded: seed >> 32))
    }

    /// Four random words for a 128-bit counter given as two 64-bit halves.
    @inlinable package func words(_ low: UInt64, _ high: UInt64 = 0) -> SIMD4<UInt32> {
        var c0 = UInt32(truncatingIfNeeded: low), c1 = UInt32(truncatingIfNeeded: low >> 32)
        var c2 = UInt32(truncatingIfNeeded: high), c3 = UInt32(truncatingIfNeeded: high >> 32)
        var k0 = key.x, k1 = key.y
        for _ in 0..<10 {
            let p0 = UInt64(c0) &* 0xD251_1F53
            let p1 = UInt64(c2) &* 0xCD9E_8D57
            let n0 = UInt32(truncatingIfNeeded: p1 >> 32) ^ c1 ^ k0
            let n2 = UInt32(truncatingIfNeeded: p0 >> 32) ^ c3 ^ k1
            c1 = UInt32(truncatingIfNeeded: p1)
            c3 = UInt32(truncatingIfNeeded: p0)
            c0 = n0
            c2 = n2
            k0 = k0 &+ 0x9E37_79B9
            k1 = k1 &+ 0xBB67_AE85
        }
        return SIMD4(c0, c1, c2, c3)
    }
}

/// A sequential generator over `Philox`, for shuffles, initialisation and sampling. Its whole state is two integers.
package struct RandomStream: RandomNumberGenerator, Sendable {
    package let seed: UInt64
    package var counter: UInt64

    package init(seed: UInt64, counter: UInt64 = 0) {
        self.seed = seed
        self.counter = counter
    }

    package mutating func next() -> UInt64 {
        let words = Philox(seed: seed).words(counter)
        counter &+= 1
        return UInt64(words.x) << 32 | UInt64(words.y)
    }

    /// Uniform in [0, 1), with 24 random bits.
    package mutating func uniform() -> Float { Float(next() >> 40) * 0x1p-24 }

    /// Standard normal (Box-Muller).
    package mutating func normal() -> Float {
        let u = max(Double(next() >> 11) * 0x1p-53, 0x1p-53)
        let v = Double(next() >> 11) * 0x1p-53
        return Float((-2 * u.logarithm).squareRoot() * (2 * Double.pi * v).cosine)
    }
}
