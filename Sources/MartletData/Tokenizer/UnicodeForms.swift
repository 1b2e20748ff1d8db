@_spi(_Unicode) import Swift

/// The Unicode normalization forms (UAX #15) as of Unicode 9, the version that `tokenizers` 0.23 normalizes with.
///
/// The standard library knows a later version; characters that are younger than 9 are left as they are.
enum UnicodeForm {
    case nfc, nfd, nfkc, nfkd

    private static let version = (major: 9, minor: 0)

    /// Rewrites a text; nil if it is in that form already. `text` is valid UTF-8.
    func apply(to text: UnsafeBufferPointer<UInt8>, tracks: Bool) -> AlignedText? {
        guard let start = text.baseAddress, UnicodeForm.mayChange(start, text.count, self) else { return nil }
        switch self {
        case .nfc, .nfd: return canonical(start, text.count, tracks)
        case .nfkc, .nfkd:
            let plain = UnicodeForm.withoutCompatibility(start, text.count, tracks)
            let form: UnicodeForm = self == .nfkc ? .nfc : .nfd
            guard let next = plain.bytes.withUnsafeBufferPointer({ form.apply(to: $0, tracks: tracks) }) else {
                return plain
            }
            return next.following(plain)
        }
    }

    /// Quick check: below U+0300 every text is NFC, below U+0080 it is in every form.
    private static func mayChange(_ text: UnsafePointer<UInt8>, _ count: Int, _ form: UnicodeForm) -> Bool {
        var i = 0
        if form == .nfc {
            while i < count {
                if text[i] < 0xCC { i += 1; continue }
                let (scalar, length) = decodeScalar(text + i)
                if active.contains(scalar) { return true }
                i += length
            }
            return false
        }
        while i < count, text[i] < 0x80 { i += 1 }
        return i < count
    }

    /// Normalizes segment by segment. A segment begins at a character that neither changes in NFC nor combines with
    /// what stands before it: the form of the whole is the forms of the segments, one after the other.
    private func canonical(_ text: UnsafePointer<UInt8>, _ count: Int, _ tracks: Bool) -> AlignedText {
        var result = AlignedText(tracks: tracks)
        var done = 0
        var start = 0
        var i = 0
        var isActive = false
        func finish(_ end: Int) {
            if isActive || (self == .nfd && end > start && text[start] >= 0x80) {
                result.copy(text, done..<start)
                let source = UnsafeBufferPointer(start: text + start, count: end - start)
                let segment = UnicodeForm.splitVowels(String(decoding: source, as: UTF8.self))
                var form = String()
                if self == .nfc {
                    form.unicodeScalars.append(contentsOf: segment._nfc)
                } else {
                    form.unicodeScalars.append(contentsOf: segment._nfd)
                }
                result.append(form.utf8, for: start..<end)
                done = end
            }
            start = end
            isActive = false
        }
        while i < count {
            let (scalar, length) = decodeScalar(text + i)
            if scalar >= 0x300, UnicodeForm.active.contains(scalar) {
                isActive = true
            } else {
                finish(i)
                if UnicodeForm.young.contains(scalar) {
                    // Left alone, and nothing before or after combines with it.
                    result.copy(text, done..<i + length)
                    done = i + length
                    start = done
                }
            }
            i += length
        }
        finish(count)
        result.copy(text, done..<count)
        return result
    }

    /// The standard library misplaces three Tibetan vowels, the only characters of class 0 that begin with a mark; so
    /// they are taken apart beforehand.
    private static func splitVowels(_ segment: String) -> String {
        guard segment.unicodeScalars.contains(where: { ["\u{F73}", "\u{F75}", "\u{F81}"].contains($0) }) else {
            return segment
        }
        var result = String.UnicodeScalarView()
        for scalar in segment.unicodeScalars {
            switch scalar {
            case "\u{F73}": result.append(contentsOf: ["\u{F71}", "\u{F72}"])
            case "\u{F75}": result.append(contentsOf: ["\u{F71}", "\u{F74}"])
            case "\u{F81}": result.append(contentsOf: ["\u{F71}", "\u{F80}"])
            default: result.append(scalar)
            }
        }
        return String(result)
    }

    /// The characters that NFC may change or move or join to the one before.
    private static let active: ScalarTable = ScalarTable(activeSet)
    /// The characters that are younger than `version`.
    private static let young: ScalarTable = ScalarTable(youngSet)

    private static let youngSet = set { scalar in
        scalar.properties.age.map { ($0.major, $0.minor) > version } ?? true
    }

    /// Large blocks of which nothing is active: ideographs, Hangul syllables, private use.
    private static let inert: [ClosedRange<UInt32>] = [
        0x3400...0x4DBF, 0x4E00...0x9FFF, 0xAC00...0xD7A3, 0xE000...0xF8FF, 0x20000...0x2F7FF,
    ]

    private static let activeSet: ScalarSet = {
        var joining: [ClosedRange<UInt32>] = [0x1161...0x1175, 0x11A8...0x11C2]
        let changing = set { scalar in
            let value = scalar.value
            if value < 0x300 || inert.contains(where: { $0.contains(value) }) || youngSet.contains(value) {
                return false
            }
            if scalar.properties.canonicalCombiningClass != .notReordered { return true }
            let text = String(scalar)
            if let last = Array(text._nfd).last, last != scalar {
                if last.value >= 0x300 { joining.append(last.value...last.value) }
                return Array(text._nfc) != [scalar]
            }
            return false
        }
        // The last part of a character below U+0300 with a mark is a mark: its class is not 0.
        return ScalarSet(changing.ranges + joining)
    }()

    /// Scans the planes that have letters; the rest holds nothing that normalization touches.
    private static func set(where holds: (UnicodeScalar) -> Bool) -> ScalarSet {
        var ranges: [ClosedRange<UInt32>] = []
        for value in UInt32(0)..<0x30000 {
            guard let scalar = UnicodeScalar(value), holds(scalar) else { continue }
            if let last = ranges.last, last.upperBound + 1 == value {
                ranges[ranges.count - 1] = last.lowerBound...value
            } else {
                ranges.append(value...value)
            }
        }
        return ScalarSet(ranges)
    }

    private static func withoutCompatibility(_ text: UnsafePointer<UInt8>, _ count: Int, _ tracks: Bool) -> AlignedText
    {
        var result = AlignedText(tracks: tracks)
        var i = 0
        while i < count {
            let (scalar, length) = decodeScalar(text + i)
            if scalar >= 0x80, !young.contains(scalar), let mapping = CompatibilityMappings.table[scalar] {
                result.append(mapping, for: i..<i + length)
            } else {
                result.copy(text, i..<i + length)
            }
            i += length
        }
        return result
    }
}
