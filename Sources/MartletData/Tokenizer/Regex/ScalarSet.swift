/// A set of Unicode scalars: sorted ranges that neither overlap nor touch.
struct ScalarSet: Equatable, Sendable {
    private(set) var ranges: [ClosedRange<UInt32>]

    static let last: UInt32 = 0x10FFFF
    static let none = ScalarSet([])
    static let all = ScalarSet([0...last])

    init(_ ranges: [ClosedRange<UInt32>]) {
        var merged: [ClosedRange<UInt32>] = []
        for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            if let previous = merged.last, range.lowerBound <= previous.upperBound &+ 1 {
                merged[merged.count - 1] = previous.lowerBound...max(previous.upperBound, range.upperBound)
            } else {
                merged.append(range)
            }
        }
        self.ranges = merged
    }

    init(_ scalars: UnicodeScalar...) { self.init(scalars.map { $0.value...$0.value }) }

    /// The scalar, if there is exactly one.
    var single: UInt32? {
        guard ranges.count == 1, let range = ranges.first, range.count == 1 else { return nil }
        return range.lowerBound
    }

    func contains(_ scalar: UInt32) -> Bool {
        var low = 0, high = ranges.count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].upperBound < scalar { low = middle + 1 } else { high = middle }
        }
        return low < ranges.count && ranges[low].contains(scalar)
    }

    func union(_ other: ScalarSet) -> ScalarSet { ScalarSet(ranges + other.ranges) }

    var inverted: ScalarSet {
        var gaps: [ClosedRange<UInt32>] = []
        var next: UInt32 = 0
        for range in ranges {
            if range.lowerBound > next { gaps.append(next...range.lowerBound - 1) }
            next = range.upperBound + 1
        }
        if next <= ScalarSet.last { gaps.append(next...ScalarSet.last) }
        return ScalarSet(gaps)
    }

    func intersection(_ other: ScalarSet) -> ScalarSet { inverted.union(other.inverted).inverted }
}

/// A `ScalarSet` prepared for matching UTF-8: one table look-up answers for most leading bytes.
/// Its owner frees it.
struct ScalarTable: @unchecked Sendable {
    // @unchecked: the memory is written in init only.

    /// By leading byte: 0 = not in the set, 1...4 = in the set and that long, 255 = look at the whole scalar.
    let lead: UnsafeMutablePointer<UInt8>
    private let blocks: UnsafeMutablePointer<UInt16>
    private let bits: UnsafeMutablePointer<UInt64>

    static let undecided: UInt8 = 255

    init(_ set: ScalarSet) {
        lead = .allocate(capacity: 256)
        lead.initialize(repeating: 0, count: 256)
        blocks = .allocate(capacity: 0x1100)
        var words: [UInt64] = []
        var known: [[UInt64]: UInt16] = [:]
        var ranges = set.ranges[...]
        for block in 0..<0x1100 {
            while let range = ranges.first, range.upperBound < UInt32(block) << 8 { ranges.removeFirst() }
            let content = ScalarTable.block(block, of: ranges)
            let index = known[content] ?? UInt16(known.count)
            if Int(index) == known.count {
                known[content] = index
                words += content
            }
            (blocks + block).initialize(to: index)
        }
        bits = .allocate(capacity: words.count)
        bits.initialize(from: words, count: words.count)
        for byte in 0..<0x80 where set.contains(UInt32(byte)) { lead[byte] = 1 }
        for byte in 0xC2...0xF4 { lead[byte] = ScalarTable.decision(for: UInt32(byte), set) }
    }

    func deallocate() {
        lead.deallocate()
        blocks.deallocate()
        bits.deallocate()
    }

    @inline(__always) func contains(_ scalar: UInt32) -> Bool {
        let block = Int(blocks[Int(scalar >> 8)])
        return bits[block * 4 + Int((scalar >> 6) & 3)] >> UInt64(scalar & 63) & 1 == 1
    }

    /// The length of the scalar at `text` if the set holds it, else 0. `text` is valid UTF-8.
    @inline(__always) func length(at text: UnsafePointer<UInt8>) -> Int {
        let quick = lead[Int(text[0])]
        if quick != ScalarTable.undecided { return Int(quick) }
        let (scalar, length) = decodeScalar(text)
        return contains(scalar) ? length : 0
    }

    /// The 256 bits of a block; `ranges` are those of a set from the block on.
    private static func block(_ block: Int, of ranges: ArraySlice<ClosedRange<UInt32>>) -> [UInt64] {
        let first = UInt32(block) << 8
        if let range = ranges.first, range.lowerBound <= first, range.upperBound >= first + 255 {
            return [UInt64](repeating: .max, count: 4)
        }
        var words: [UInt64] = [0, 0, 0, 0]
        for range in ranges {
            if range.lowerBound > first + 255 { break }
            for scalar in max(range.lowerBound, first)...min(range.upperBound, first + 255) {
                words[Int((scalar >> 6) & 3)] |= 1 << UInt64(scalar & 63)
            }
        }
        return words
    }

    /// What the leading byte alone tells.
    private static func decision(for byte: UInt32, _ set: ScalarSet) -> UInt8 {
        let (first, last, length): (UInt32, UInt32, UInt8) =
            switch byte {
            case ..<0xE0: ((byte & 0x1F) << 6, (byte & 0x1F) << 6 | 0x3F, 2)
            case ..<0xF0: (max(0x800, (byte & 0xF) << 12), (byte & 0xF) << 12 | 0xFFF, 3)
            default: (max(0x10000, (byte & 7) << 18), min(ScalarSet.last, (byte & 7) << 18 | 0x3FFFF), 4)
            }
        for range in set.ranges where range.upperBound >= first && range.lowerBound <= last {
            return range.lowerBound <= first && range.upperBound >= last ? length : undecided
        }
        return 0
    }
}

/// The scalar at `text`, which is valid UTF-8, and its length in bytes.
@inline(__always) func decodeScalar(_ text: UnsafePointer<UInt8>) -> (scalar: UInt32, length: Int) {
    let a = UInt32(text[0])
    if a < 0x80 { return (a, 1) }
    let b = UInt32(text[1]) & 0x3F
    if a < 0xE0 { return ((a & 0x1F) << 6 | b, 2) }
    let c = UInt32(text[2]) & 0x3F
    if a < 0xF0 { return ((a & 0xF) << 12 | b << 6 | c, 3) }
    return ((a & 7) << 18 | b << 12 | c << 6 | UInt32(text[3]) & 0x3F, 4)
}

/// The length in bytes of the UTF-8 sequence that starts with `lead`.
@inline(__always) func scalarLength(_ lead: UInt8) -> Int { lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4 }

/// The UTF-8 form of a scalar value; nothing for a surrogate.
func utf8(_ scalar: UInt32) -> [UInt8] { UnicodeScalar(scalar).map { Array(String($0).utf8) } ?? [] }
