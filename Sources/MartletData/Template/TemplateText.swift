#if canImport(Glibc)
internal import Glibc
#elseif canImport(Darwin)
internal import Darwin
#endif

// Python's view of text on Swift strings: by Unicode scalar, without normalisation, on the UTF-8 bytes.

typealias TextBytes = UnsafeBufferPointer<UInt8>

/// Whether two strings hold the same scalars (Swift's `==` also accepts canonical equivalents; Python does not).
func sameText(_ a: String, _ b: String) -> Bool {
    guard a.utf8.count == b.utf8.count else { return false }
    return a.withBytes { a in b.withBytes { b in a.count == 0 || bytesEqual(a, 0, b) } }
}

/// Order by scalar value, which is the order of the UTF-8 bytes.
func textPrecedes(_ a: String, _ b: String) -> Bool { a.utf8.lexicographicallyPrecedes(b.utf8) }

/// Whether `needle` stands in `bytes` at `offset` (both lengths fit).
private func bytesEqual(_ bytes: TextBytes, _ offset: Int, _ needle: TextBytes) -> Bool {
    guard let a = bytes.baseAddress, let b = needle.baseAddress else { return true }
    return memcmp(a + offset, b, needle.count) == 0
}

extension String {
    func withBytes<R>(_ body: (TextBytes) -> R) -> R {
        if let result = utf8.withContiguousStorageIfAvailable(body) { return result }
        var copy = self
        return copy.withUTF8(body)
    }

    init(_ bytes: TextBytes, _ range: Range<Int>) {
        self = String(decoding: UnsafeBufferPointer(rebasing: bytes[range]), as: UTF8.self)
    }

    /// The number of Unicode scalars.
    var scalarCount: Int {
        withBytes { bytes in bytes.reduce(0) { $0 + ($1 & 0xC0 == 0x80 ? 0 : 1) } }
    }

    /// The UTF-8 offset of every occurrence of `needle` (not empty) that does not overlap an earlier one, at most `limit`.
    func offsets(of needle: String, limit: Int = .max) -> [Int] {
        withBytes { bytes in
            needle.withBytes { needle in
                var found: [Int] = []
                var from = 0
                while found.count < limit, let at = findBytes(needle, in: bytes, from: from) {
                    found.append(at)
                    from = at + needle.count
                }
                return found
            }
        }
    }

    /// The UTF-8 offset of the first occurrence of `needle`.
    func firstOffset(of needle: String) -> Int? {
        withBytes { bytes in needle.withBytes { findBytes($0, in: bytes, from: 0) } }
    }

    /// The UTF-8 offset of the last occurrence of `needle`.
    func lastOffset(of needle: String) -> Int? {
        withBytes { bytes in
            needle.withBytes { findLastBytes($0, in: bytes) }
        }
    }

    func hasText(prefix: String) -> Bool {
        withBytes { bytes in
            prefix.withBytes { $0.count <= bytes.count && bytesEqual(bytes, 0, $0) }
        }
    }

    func hasText(suffix: String) -> Bool {
        withBytes { bytes in
            suffix.withBytes { $0.count <= bytes.count && bytesEqual(bytes, bytes.count - $0.count, $0) }
        }
    }

    /// The part of the text in a range of UTF-8 offsets.
    func part(_ range: Range<Int>) -> String { withBytes { String($0, range.clamped(to: 0..<$0.count)) } }

    /// The pieces between occurrences of `separator`, splitting at most `limit` times.
    func pieces(around separator: String, limit: Int = .max) -> [String] {
        let cuts = offsets(of: separator, limit: limit)
        guard !cuts.isEmpty else { return [self] }
        let width = separator.utf8.count
        return withBytes { bytes in
            var pieces: [String] = []
            var from = 0
            for cut in cuts {
                pieces.append(String(bytes, from..<cut))
                from = cut + width
            }
            pieces.append(String(bytes, from..<bytes.count))
            return pieces
        }
    }

    /// Python's `replace`.
    func replacing(text old: String, with new: String, limit: Int = .max) -> String {
        if old.isEmpty { return interleaved(with: new, limit: limit) }
        let pieces = pieces(around: old, limit: limit)
        return pieces.count == 1 ? self : pieces.joined(separator: new)
    }

    private func interleaved(with new: String, limit: Int) -> String {
        guard limit > 0 else { return self }
        var out = ""
        var count = 0
        for scalar in unicodeScalars {
            if count < limit { out += new }
            count += 1
            out.unicodeScalars.append(scalar)
        }
        return count < limit ? out + new : out
    }

    /// Python's `strip`: `chars` names the scalars to remove, nil is white space.
    func stripped(_ chars: String? = nil, leading: Bool = true, trailing: Bool = true) -> String {
        let scalars = unicodeScalars
        var start = scalars.startIndex, end = scalars.endIndex
        let set = chars.map { Set($0.unicodeScalars) }
        func goes(_ scalar: Unicode.Scalar) -> Bool { set?.contains(scalar) ?? scalar.isPythonSpace }
        while leading, start < end, goes(scalars[start]) { start = scalars.index(after: start) }
        while trailing, start < end {
            let before = scalars.index(before: end)
            guard goes(scalars[before]) else { break }
            end = before
        }
        if start == scalars.startIndex, end == scalars.endIndex { return self }
        return String(scalars[start..<end])
    }

    /// Python's `splitlines`.
    func lines(keepingEnds: Bool = false) -> [String] {
        var lines: [String] = []
        let scalars = unicodeScalars
        var start = scalars.startIndex, i = start
        while i < scalars.endIndex {
            let end = i
            let scalar = scalars[i]
            i = scalars.index(after: i)
            guard scalar.isLineBreak else { continue }
            if scalar == "\r", i < scalars.endIndex, scalars[i] == "\n" { i = scalars.index(after: i) }
            lines.append(String(scalars[start..<(keepingEnds ? i : end)]))
            start = i
        }
        if start < scalars.endIndex { lines.append(String(scalars[start...])) }
        return lines
    }

    /// Python's `split()` without a separator.
    func words(limit: Int = .max) -> [String] {
        var words: [String] = []
        var rest = unicodeScalars[...]
        while true {
            rest = rest.drop { $0.isPythonSpace }
            if rest.isEmpty { return words }
            if words.count >= limit {
                words.append(String(rest))
                return words
            }
            let word = rest.prefix { !$0.isPythonSpace }
            words.append(String(word))
            rest = rest[word.endIndex...]
        }
    }

    /// Python's `rsplit()` without a separator.
    func wordsFromEnd(limit: Int) -> [String] {
        var words: [String] = []
        var rest = unicodeScalars[...]
        while true {
            while let last = rest.last, last.isPythonSpace { rest.removeLast() }
            if rest.isEmpty { return words.reversed() }
            if words.count >= limit {
                words.append(String(rest))
                return words.reversed()
            }
            var word: [Unicode.Scalar] = []
            while let last = rest.popLast() {
                if last.isPythonSpace { break }
                word.append(last)
            }
            var text = ""
            text.unicodeScalars.append(contentsOf: word.reversed())
            words.append(text)
        }
    }

    /// Python's `capitalize`.
    var capitalizedFirst: String {
        guard let first = unicodeScalars.first else { return "" }
        return first.properties.titlecaseMapping + String(unicodeScalars.dropFirst()).lowercased()
    }
}

/// The first offset of `needle` in `bytes`, at or after `from`. Long needles are found by a rolling hash (Karp and
/// Rabin), so that no text makes the search quadratic.
private func findBytes(_ needle: TextBytes, in bytes: TextBytes, from: Int) -> Int? {
    let last = bytes.count - needle.count
    guard from <= last else { return nil }
    guard needle.count > 0, let base = bytes.baseAddress else { return from }
    if needle.count > 32 { return rolling(needle, in: bytes, from: from, to: last) }
    var at = from
    while at <= last, let hit = memchr(base + at, CInt(needle[0]), last - at + 1) {
        at = UnsafeRawPointer(hit) - UnsafeRawPointer(base)
        if bytesEqual(bytes, at, needle) { return at }
        at += 1
    }
    return nil
}

/// The last offset of `needle` in `bytes`.
private func findLastBytes(_ needle: TextBytes, in bytes: TextBytes) -> Int? {
    let last = bytes.count - needle.count
    guard last >= 0 else { return nil }
    if needle.count > 32 { return rolling(needle, in: bytes, from: last, to: 0) }
    return (0...last).reversed().first { bytesEqual(bytes, $0, needle) }
}

/// The first match on the way from one offset to another, forwards or backwards.
private func rolling(_ needle: TextBytes, in bytes: TextBytes, from: Int, to: Int) -> Int? {
    let factor: UInt64 = 0x9E37_79B9_7F4A_7C15
    let isForward = from <= to
    var power: UInt64 = 1, wanted: UInt64 = 0, found: UInt64 = 0
    for k in 0..<needle.count {
        let i = isForward ? k : needle.count - 1 - k
        wanted = wanted &* factor &+ UInt64(needle[i])
        found = found &* factor &+ UInt64(bytes[from + i])
        if k > 0 { power = power &* factor }
    }
    var at = from
    while true {
        if found == wanted, bytesEqual(bytes, at, needle) { return at }
        if at == to { return nil }
        let leaving = isForward ? at : at + needle.count - 1
        let entering = isForward ? at + needle.count : at - 1
        found = (found &- UInt64(bytes[leaving]) &* power) &* factor &+ UInt64(bytes[entering])
        at += isForward ? 1 : -1
    }
}

extension Unicode.Scalar {
    /// Python's `str.isspace` of one character.
    var isPythonSpace: Bool {
        switch value {
        case 0x09...0x0D, 0x1C...0x20, 0x85, 0xA0, 0x1680, 0x2000...0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000: true
        default: false
        }
    }

    /// What ends a line for Python's `splitlines`.
    var isLineBreak: Bool {
        switch value {
        case 0x0A...0x0D, 0x1C...0x1E, 0x85, 0x2028, 0x2029: true
        default: false
        }
    }

    /// Python's `str.isprintable` of one character.
    var isPrintable: Bool {
        if value < 0x7F { return value >= 0x20 }
        switch properties.generalCategory {
        case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator,
            .spaceSeparator:
            return false
        default: return true
        }
    }
}
