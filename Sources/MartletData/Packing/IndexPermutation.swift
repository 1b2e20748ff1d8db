import MartletCore

/// A seeded permutation of `0 ..< count` that is read at any index without being stored: a Feistel network over the next
/// power of four, walked until it lands inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
package struct IndexPermutation: Sendable {
    package let count: Int
    private let halfBits: UInt64
    private let philox: Philox
    private let stream: UInt64
    private static let roundCount: UInt64 = 8

    /// `stream` tells permutations of one seed apart, such as the epochs.
    package init(count: Int, seed: UInt64, stream: UInt64) {
        self.count = count
        self.stream = stream
        philox = Philox(seed: seed)
        let bits = UInt64(64 - max(count - 1, 1).leadingZeroBitCount)
        halfBits = (bits + 1) / 2
    }

    package subscript(_ index: Int) -> Int {
        precondition(index >= 0 && index < count)
        var value = UInt64(index)
        repeat { value = encipher(value) } while value >= UInt64(count)
        return Int(value)
    }

    private func encipher(_ value: UInt64) -> UInt64 {
        let mask = (1 as UInt64) << halfBits - 1
        var left = value >> halfBits, right = value & mask
        for round in 0..<IndexPermutation.roundCount {
            let word = UInt64(philox.words(right << 8 | round, stream).x)
            (left, right) = (right, left ^ (word & mask))
        }
        return left << halfBits | right
    }
}
