/// A parsed regular expression. Groups capture nothing: only the bounds of whole matches are asked for.
indirect enum RegexNode: Sendable {
    case empty
    /// One scalar of the set.
    case set(ScalarSet)
    case sequence([RegexNode])
    case alternation([RegexNode])
    case repetition(RegexNode, least: Int, most: Int?, Greed)
    case assertion(Assertion)
    case look(RegexNode, behind: Bool, negative: Bool)
    /// What matched inside is not tried again otherwise.
    case atomic(RegexNode)

    enum Greed: Sendable { case greedy, lazy, possessive }

    enum Assertion: Sendable {
        case lineStart, lineEnd, textStart, textEnd, textEndOrNewline, wordBoundary, noWordBoundary, searchStart
    }

    static func literal(_ text: String) -> RegexNode {
        .sequence(text.unicodeScalars.map { .set(ScalarSet($0)) })
    }

    /// The bytes a match can start with, and whether it can be empty.
    var first: (bytes: ByteSet, canBeEmpty: Bool) {
        switch self {
        case .empty, .assertion, .look: return (ByteSet(), true)
        case .set(let set): return (ByteSet(leading: set), false)
        case .atomic(let node): return node.first
        case .repetition(let node, let least, let most, _):
            if most == 0 { return (ByteSet(), true) }
            let inner = node.first
            return (inner.bytes, inner.canBeEmpty || least == 0)
        case .alternation(let nodes):
            return nodes.map(\.first).reduce((ByteSet(), false)) {
                ($0.bytes.union($1.bytes), $0.canBeEmpty || $1.canBeEmpty)
            }
        case .sequence(let nodes):
            var bytes = ByteSet()
            for node in nodes {
                let inner = node.first
                bytes = bytes.union(inner.bytes)
                if !inner.canBeEmpty { return (bytes, false) }
            }
            return (bytes, true)
        }
    }

    /// The fewest and most bytes a match can have; nil: no limit.
    var width: (least: Int, most: Int?) {
        switch self {
        case .empty, .assertion, .look: return (0, 0)
        case .set(let set):
            let lengths = [set.ranges.first?.lowerBound, set.ranges.last?.upperBound].compactMap { $0 }
                .map { $0 < 0x80 ? 1 : $0 < 0x800 ? 2 : $0 < 0x10000 ? 3 : 4 }
            return (lengths.min() ?? 0, lengths.max() ?? 0)
        case .atomic(let node): return node.width
        case .repetition(let node, let least, let most, _):
            let inner = node.width
            let most = inner.most.flatMap { width in width == 0 ? 0 : most.map { $0.multipliedClamped(by: width) } }
            return (inner.least.multipliedClamped(by: least), most)
        case .alternation(let nodes):
            let widths = nodes.map(\.width)
            let most = widths.contains { $0.most == nil } ? nil : widths.compactMap(\.most).max()
            return (widths.map(\.least).min() ?? 0, most)
        case .sequence(let nodes):
            return nodes.map(\.width).reduce((0, 0)) { sum, next in
                (sum.least.addedClamped(next.least), sum.most.flatMap { a in next.most.map { a.addedClamped($0) } })
            }
        }
    }
}

extension Int {
    /// Sums and products of widths; anything beyond 2^40 is as good as without limit.
    fileprivate func addedClamped(_ other: Int) -> Int { Swift.min(self + other, 1 << 40) }
    fileprivate func multipliedClamped(by other: Int) -> Int {
        let (product, overflow) = multipliedReportingOverflow(by: other)
        return overflow ? 1 << 40 : Swift.min(product, 1 << 40)
    }
}

/// A set of byte values.
struct ByteSet: Sendable {
    private var words: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)

    init() {}

    /// The bytes that the UTF-8 of the scalars of `set` starts with.
    init(leading set: ScalarSet) {
        for range in set.ranges {
            guard let low = ByteSet.lead(range.lowerBound), let high = ByteSet.lead(range.upperBound) else { continue }
            // A range that begins in ASCII passes over the bytes that lead nothing.
            for byte in low...high where byte < 0x80 || byte >= 0xC2 { insert(byte) }
        }
    }

    private static func lead(_ scalar: UInt32) -> UInt8? {
        switch scalar {
        case ..<0x80: UInt8(scalar)
        case ..<0x800: UInt8(0xC0 | scalar >> 6)
        case ..<0x10000: UInt8(0xE0 | scalar >> 12)
        case ...0x10FFFF: UInt8(0xF0 | scalar >> 18)
        default: nil
        }
    }

    mutating func insert(_ byte: UInt8) {
        let bit = UInt64(1) << UInt64(byte & 63)
        switch byte >> 6 {
        case 0: words.0 |= bit
        case 1: words.1 |= bit
        case 2: words.2 |= bit
        default: words.3 |= bit
        }
    }

    func contains(_ byte: UInt8) -> Bool {
        let word =
            switch byte >> 6 {
            case 0: words.0;
            case 1: words.1;
            case 2: words.2;
            default: words.3
            }
        return word >> UInt64(byte & 63) & 1 == 1
    }

    func union(_ other: ByteSet) -> ByteSet {
        var result = self
        result.words = (
            words.0 | other.words.0, words.1 | other.words.1, words.2 | other.words.2, words.3 | other.words.3
        )
        return result
    }
}
