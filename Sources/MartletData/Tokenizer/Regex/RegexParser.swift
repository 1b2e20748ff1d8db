import MartletCore

/// Parses the regular expressions of `tokenizer.json`: the syntax of Oniguruma's Ruby flavour, which `tokenizers`
/// uses (doc/RE of Oniguruma 6.9), without captures, back references, calls and the absent operator.
struct RegexParser {
    let pattern: [UnicodeScalar]
    var i = 0
    var flags = Flags()

    struct Flags {
        var ignoresCase = false
        /// Ruby's (?m): the dot matches a newline too.
        var dotMatchesNewline = false
        var isExtended = false
    }

    static let maximumDepth = 64
    static let maximumRepeat = 100_000

    static func parse(_ pattern: String) throws(MartletError) -> RegexNode {
        var parser = RegexParser(pattern: Array(pattern.unicodeScalars))
        let node = try parser.alternation(depth: 0)
        guard parser.i == parser.pattern.count else { throw parser.failure("there is a ')' without its '('") }
        return node
    }

    func failure(_ reason: String) -> MartletError {
        var text = String.UnicodeScalarView()
        text.append(contentsOf: pattern)
        return MartletError(
            "the regular expression '\(String(text))' cannot be used", in: "character \(i + 1) of the pattern",
            because: reason,
            fix: "rewrite the pattern in tokenizer.json with the parts of the syntax that are supported")
    }

    var next: UnicodeScalar? { i < pattern.count ? pattern[i] : nil }

    func sees(_ text: String) -> Bool { pattern[min(i, pattern.count)...].starts(with: text.unicodeScalars) }

    mutating func skip(_ text: String) -> Bool {
        guard sees(text) else { return false }
        i += text.unicodeScalars.count
        return true
    }

    mutating func alternation(depth: Int) throws(MartletError) -> RegexNode {
        guard depth < RegexParser.maximumDepth else { throw failure("groups are nested too deeply") }
        var branches = [try sequence(depth: depth)]
        while skip("|") { branches.append(try sequence(depth: depth)) }
        return branches.count == 1 ? branches[0] : .alternation(branches)
    }

    private mutating func sequence(depth: Int) throws(MartletError) -> RegexNode {
        var nodes: [RegexNode] = []
        while let scalar = next, scalar != "|", scalar != ")" {
            if flags.isExtended, skipBlank(scalar) { continue }
            let folds = flags.ignoresCase
            let start = i
            guard let atom = try atom(depth: depth) else { continue }
            if folds { try refuseFoldedPairs(from: start) }
            nodes.append(try quantified(atom))
        }
        return nodes.count == 1 ? nodes[0] : nodes.isEmpty ? .empty : .sequence(nodes)
    }

    private mutating func skipBlank(_ scalar: UnicodeScalar) -> Bool {
        if scalar == "#" {
            while let scalar = next, scalar != "\n" { _ = scalar; i += 1 }
            return true
        }
        guard UnicodeClasses.space.contains(scalar.value) else { return false }
        i += 1
        return true
    }

    /// Oniguruma also folds single characters with pairs of letters ('ß' with 'ss'); this engine does not.
    private func refuseFoldedPairs(from start: Int) throws(MartletError) {
        if start < pattern.count, ["ß", "ẞ", "ﬀ", "ﬁ", "ﬂ", "ﬅ", "ﬆ"].contains(pattern[start]) {
            throw failure("'\(pattern[start])' inside (?i) stands for two letters, which is not supported")
        }
        guard start > 0, i == start + 1, start < pattern.count else { return }
        let pair = String(String.UnicodeScalarView(pattern[start - 1...start])).lowercased()
        if ["ss", "ff", "fi", "fl", "st"].contains(pair) {
            throw failure(
                "'\(pair)' inside (?i) also matches a single character (as 'ss' matches 'ß'), which is not supported")
        }
    }

    // MARK: Quantifiers

    private mutating func quantified(_ atom: RegexNode) throws(MartletError) -> RegexNode {
        var node = atom
        while let scalar = next {
            if flags.isExtended, skipBlank(scalar) { continue }
            switch scalar {
            case "*", "+", "?":
                i += 1
                let greed: RegexNode.Greed = skip("?") ? .lazy : skip("+") ? .possessive : .greedy
                node = .repetition(node, least: scalar == "+" ? 1 : 0, most: scalar == "?" ? 1 : nil, greed)
            case "{":
                guard let (least, most) = try interval() else { return node }
                // '{n}?' makes the whole optional; only '{n,m}?' is lazy; '{n,m}+' is no possessive form.
                let lazy = most != least && skip("?")
                node = .repetition(node, least: least, most: most, lazy ? .lazy : .greedy)
            default: return node
            }
        }
        return node
    }

    /// '{n}', '{n,}', '{,m}' or '{n,m}'; nil (and nothing read) if it is none of them and so a plain '{'.
    private mutating func interval() throws(MartletError) -> (Int, Int?)? {
        let start = i
        i += 1
        let least = number()
        var most = least
        if skip(",") { most = number() } else if least == nil { i = start; return nil }
        guard skip("}"), least != nil || most != nil else {
            i = start
            return nil
        }
        let (low, high) = (least ?? 0, most)
        guard low <= RegexParser.maximumRepeat, high ?? 0 <= RegexParser.maximumRepeat else {
            throw failure("a repeat count is above \(RegexParser.maximumRepeat)")
        }
        if let high, high < low { throw failure("the repeat range {\(low),\(high)} is reversed") }
        return (low, high)
    }

    private mutating func number() -> Int? {
        var value: Int?
        while let scalar = next, ("0"..."9").contains(scalar) {
            value = min((value ?? 0) * 10 + Int(scalar.value - 0x30), 1 << 30)
            i += 1
        }
        return value
    }

    // MARK: Atoms

    /// One thing that a quantifier can follow; nil for a comment and for an option without a group.
    private mutating func atom(depth: Int) throws(MartletError) -> RegexNode? {
        guard let scalar = next else { return nil }
        switch scalar {
        case "(": return try group(depth: depth)
        case "[": return .set(try bracket(depth: depth))
        case "\\": return try escape()
        case "*", "+", "?": throw failure("'\(scalar)' has nothing to repeat")
        default: break
        }
        i += 1
        switch scalar {
        case ".": return .set(flags.dotMatchesNewline ? .all : ScalarSet("\n").inverted)
        case "^": return .assertion(.lineStart)
        case "$": return .assertion(.lineEnd)
        default: return literal(scalar)
        }
    }

    private func literal(_ scalar: UnicodeScalar) -> RegexNode {
        let set = ScalarSet(scalar)
        return .set(flags.ignoresCase ? CaseFolding.closure(of: set) : set)
    }

    private mutating func group(depth: Int) throws(MartletError) -> RegexNode? {
        let outer = flags
        defer { flags = outer }
        if skip("(?#") {
            while let scalar = next, scalar != ")" { _ = scalar; i += 1 }
            guard skip(")") else { throw failure("a comment is not closed") }
            return nil
        }
        if skip("(?:") { return try closed(depth) }
        if skip("(?>") { return .atomic(try closed(depth)) }
        if skip("(?=") { return .look(try closed(depth), behind: false, negative: false) }
        if skip("(?!") { return .look(try closed(depth), behind: false, negative: true) }
        if skip("(?<=") { return .look(try closed(depth), behind: true, negative: false) }
        if skip("(?<!") { return .look(try closed(depth), behind: true, negative: true) }
        if skip("(?<") || skip("(?'") {
            while let scalar = next, scalar != ">", scalar != "'" { _ = scalar; i += 1 }
            i = min(i + 1, pattern.count)
            return try closed(depth)
        }
        if skip("(?") { return try options(depth) }
        _ = skip("(")
        return try closed(depth)
    }

    private mutating func closed(_ depth: Int) throws(MartletError) -> RegexNode {
        let node = try alternation(depth: depth + 1)
        guard skip(")") else { throw failure("a group is not closed") }
        return node
    }

    /// '(?i-m:...)' or '(?i)', which holds to the end of the group it stands in.
    private mutating func options(_ depth: Int) throws(MartletError) -> RegexNode {
        var value = true
        while let scalar = next, scalar != ":", scalar != ")" {
            switch scalar {
            case "-": value = false
            case "i": flags.ignoresCase = value
            case "m": flags.dotMatchesNewline = value
            case "x": flags.isExtended = value
            default: throw failure("the group option '\(scalar)' is not supported")
            }
            i += 1
        }
        if skip(":") { return try closed(depth) }
        guard skip(")") else { throw failure("a group is not closed") }
        return try alternation(depth: depth + 1)
    }

    // MARK: Escapes

    private mutating func escape() throws(MartletError) -> RegexNode {
        if let set = try classEscape(inBracket: false) { return .set(set) }
        guard i + 1 < pattern.count else { throw failure("the pattern ends with '\\'") }
        let scalar = pattern[i + 1]
        let assertions: [UnicodeScalar: RegexNode.Assertion] = [
            "A": .textStart, "z": .textEnd, "Z": .textEndOrNewline, "b": .wordBoundary, "B": .noWordBoundary,
            "G": .searchStart,
        ]
        if let assertion = assertions[scalar] {
            i += 2
            return .assertion(assertion)
        }
        switch scalar {
        case "R":
            i += 2
            let newline = ScalarSet([0xA...0xD, 0x85...0x85, 0x2028...0x2029])
            return .atomic(.alternation([.literal("\r\n"), .set(newline)]))
        case "N", "O":
            i += 2
            return .set(scalar == "O" ? .all : ScalarSet("\n").inverted)
        case "1"..."7" where pattern[(i + 1)...].prefix(3).filter { ("0"..."7").contains($0) }.count == 3:
            return literal(try escapedScalar())  // An octal code; fewer digits refer to a group.
        case "X", "y", "Y", "K", "k", "g", "1"..."9", "C", "M", "c":
            throw failure("'\\\(scalar)' is not supported")
        default: return literal(try escapedScalar())
        }
    }

    /// The set that an escape such as '\s' or '\p{L}' at `i` stands for; nil (nothing read) if it is no such escape.
    mutating func classEscape(inBracket: Bool) throws(MartletError) -> ScalarSet? {
        guard i + 1 < pattern.count else { return nil }
        let word = inBracket ? UnicodeClasses.word : UnicodeClasses.wideWord
        let set: ScalarSet
        switch pattern[i + 1] {
        case "s": set = UnicodeClasses.space
        case "S": set = UnicodeClasses.space.inverted
        case "d": set = UnicodeClasses.digits
        case "D": set = UnicodeClasses.digits.inverted
        case "w": set = word
        case "W": set = word.inverted
        case "h": set = UnicodeClasses.hexDigits
        case "H": set = UnicodeClasses.hexDigits.inverted
        case "p", "P": return try property(inBracket: inBracket)
        default: return nil
        }
        i += 2
        return set
    }

    private mutating func property(inBracket: Bool) throws(MartletError) -> ScalarSet {
        var negated = pattern[i + 1] == "P"
        i += 2
        guard skip("{") else { throw failure("'\\p' needs a name in braces") }
        if skip("^") { negated.toggle() }
        var name = ""
        while let scalar = next, scalar != "}" {
            name.unicodeScalars.append(scalar)
            i += 1
        }
        guard skip("}") else { throw failure("a property name is not closed") }
        let isWideWord = !inBracket && name.lowercased() == "word"
        guard let set = isWideWord ? UnicodeClasses.wideWord : UnicodeClasses.property(name) else {
            throw failure("the character property '\(name)' is not known")
        }
        return negated ? set.inverted : set
    }

    /// The character that an escape at `i` stands for.
    mutating func escapedScalar() throws(MartletError) -> UnicodeScalar {
        i += 1
        guard let scalar = next else { throw failure("the pattern ends with '\\'") }
        i += 1
        let controls: [UnicodeScalar: UnicodeScalar] = [
            "n": "\n", "t": "\t", "r": "\r", "f": "\u{C}", "v": "\u{B}", "a": "\u{7}", "e": "\u{1B}",
        ]
        if let control = controls[scalar] { return control }
        switch scalar {
        case "u": return try hexadecimal(4...4)
        case "x":
            guard skip("{") else { return try hexadecimal(1...2) }
            let value = try hexadecimal(1...8)
            guard skip("}") else { throw failure("'\\x{' is not closed") }
            return value
        case "0"..."7":
            i -= 1
            return try code(radix: 8, digits: 1...3)
        case "a"..."z", "A"..."Z", "8", "9": throw failure("'\\\(scalar)' is not supported")
        default: return scalar
        }
    }

    private mutating func hexadecimal(_ digits: ClosedRange<Int>) throws(MartletError) -> UnicodeScalar {
        try code(radix: 16, digits: digits)
    }

    private mutating func code(radix: Int, digits: ClosedRange<Int>) throws(MartletError) -> UnicodeScalar {
        var text = ""
        while text.count < digits.upperBound, let scalar = next, scalar.isASCII,
            Int(String(scalar), radix: radix) != nil
        {
            text.unicodeScalars.append(scalar)
            i += 1
        }
        guard text.count >= digits.lowerBound, let value = UInt32(text, radix: radix), value < 0x80 || radix == 16,
            let scalar = UnicodeScalar(value)
        else { throw failure("a character code is malformed") }
        return scalar
    }
}
