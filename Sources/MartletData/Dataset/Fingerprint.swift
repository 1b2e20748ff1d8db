/// A 64-bit hash (FNV-1a) that tells whether two runs train on the same data; no defence against an adversary.
struct Fingerprint: Sendable {
    private var state: UInt64 = 0xCBF2_9CE4_8422_2325

    mutating func add(_ words: some Sequence<UInt32>) {
        for word in words {
            for shift in [0, 8, 16, 24] as [UInt32] {
                state = (state ^ UInt64(word >> shift & 0xFF)) &* 0x0000_0100_0000_01B3
            }
        }
    }

    mutating func add(_ value: Int) {
        let bits = UInt64(bitPattern: Int64(value))
        add(CollectionOfOne(UInt32(truncatingIfNeeded: bits)))
        add(CollectionOfOne(UInt32(truncatingIfNeeded: bits >> 32)))
    }

    mutating func add(_ text: String) {
        add(text.utf8.count)
        add(text.utf8.lazy.map(UInt32.init))
    }

    /// Sixteen hexadecimal digits.
    var text: String {
        let digits = String(state, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
