import MartletCore

extension RegexParser {
    /// A bracket expression '[...]': ranges, escapes, POSIX classes, nested brackets, '&&' for intersection.
    mutating func bracket(depth: Int) throws(MartletError) -> ScalarSet {
        guard depth < RegexParser.maximumDepth else { throw failure("brackets are nested too deeply") }
        i += 1
        let negated = skip("^")
        var intersection: ScalarSet?
        var items: [ScalarSet] = []
        var isFirst = true
        while true {
            guard let scalar = next else { throw failure("a '[' is not closed") }
            if scalar == "]" {
                if !isFirst { break }
                guard pattern[(i + 1)...].contains("]") else { throw failure("a character class is empty") }
            }
            if skip("&&") {
                let part = union(items)
                intersection = intersection?.intersection(part) ?? part
                items = []
            } else {
                items.append(try item(depth: depth))
            }
            isFirst = false
        }
        i += 1
        var set = union(items)
        if let intersection { set = intersection.intersection(set) }
        if flags.ignoresCase { set = CaseFolding.closure(of: set) }
        return negated ? set.inverted : set
    }

    private func union(_ sets: [ScalarSet]) -> ScalarSet { ScalarSet(sets.flatMap(\.ranges)) }

    private mutating func item(depth: Int) throws(MartletError) -> ScalarSet {
        if sees("[:"), let set = try posixClass() { return set }
        if next == "[" { return try bracket(depth: depth + 1) }
        if next == "\\", let set = try classEscape(inBracket: true) {
            if next == "-", i + 1 < pattern.count, pattern[i + 1] != "]" {
                throw failure("a character class such as \\d cannot start a range")
            }
            return set
        }
        let low = try character()
        guard next == "-", i + 1 < pattern.count, pattern[i + 1] != "]" else { return ScalarSet(low) }
        let rewind = i
        i += 1
        if sees("&&") || sees("[") {
            i = rewind
            return ScalarSet(low)
        }
        if next == "\\", try classEscape(inBracket: true) != nil {
            throw failure("a character class such as \\d cannot end a range")
        }
        let high = try character()
        guard low.value <= high.value else { throw failure("the range '\(low)-\(high)' is reversed") }
        // A '-' right after a range is itself: '[a-c-e]'.
        if next == "-", i + 1 < pattern.count, pattern[i + 1] != "]" {
            i += 1
            return ScalarSet([low.value...high.value, 0x2D...0x2D])
        }
        return ScalarSet([low.value...high.value])
    }

    private mutating func character() throws(MartletError) -> UnicodeScalar {
        guard let scalar = next else { throw failure("a '[' is not closed") }
        if scalar == "\\" {
            if i + 1 < pattern.count, pattern[i + 1] == "b" {
                i += 2
                return "\u{8}"
            }
            return try escapedScalar()
        }
        i += 1
        return scalar
    }

    /// '[:alpha:]' or '[:^alpha:]'; nil (nothing read) if the bracket is an ordinary one.
    private mutating func posixClass() throws(MartletError) -> ScalarSet? {
        let start = i
        i += 2
        let negated = skip("^")
        var name = ""
        while let scalar = next, scalar.isASCII, scalar.properties.isAlphabetic {
            name.unicodeScalars.append(scalar)
            i += 1
        }
        guard skip(":]") else {
            i = start
            return nil
        }
        guard let set = UnicodeClasses.property(name) else {
            throw failure("the character class '[:\(name):]' is not known")
        }
        return negated ? set.inverted : set
    }
}
