/// The character classes of regular expressions, as of Unicode 16: the version of Oniguruma in `tokenizers` 0.23.
///
/// The standard library knows a later version; characters that are younger than 16 count as unassigned here, so
/// that a text is cut in the same places whatever the toolchain.
enum UnicodeClasses {
    private static let version = (major: 16, minor: 0)

    /// A byte for each scalar of planes 0 to 3 and for the block of tags: category, then three flags.
    private static let facts: [UInt8] = {
        var facts = (UInt32(0)..<0x40000).map(fact)
        facts += (UInt32(0xE0000)..<0xE1000).map(fact)
        return facts
    }()

    private static let alphabeticFlag: UInt8 = 32, uppercaseFlag: UInt8 = 64, lowercaseFlag: UInt8 = 128

    private static func fact(_ value: UInt32) -> UInt8 {
        guard let scalar = UnicodeScalar(value) else { return code(of: .surrogate) }
        let properties = scalar.properties
        guard let age = properties.age, (age.major, age.minor) <= version else { return code(of: .unassigned) }
        // It became a letter without case in Unicode 17.
        if value == 0x295 { return code(of: .lowercaseLetter) | alphabeticFlag | lowercaseFlag }
        return code(of: properties.generalCategory)
            | (properties.isAlphabetic ? alphabeticFlag : 0)
            | (properties.isUppercase ? uppercaseFlag : 0)
            | (properties.isLowercase ? lowercaseFlag : 0)
    }

    private static let categories: [(short: String, long: String, category: Unicode.GeneralCategory)] = [
        ("lu", "uppercaseletter", .uppercaseLetter), ("ll", "lowercaseletter", .lowercaseLetter),
        ("lt", "titlecaseletter", .titlecaseLetter), ("lm", "modifierletter", .modifierLetter),
        ("lo", "otherletter", .otherLetter), ("mn", "nonspacingmark", .nonspacingMark),
        ("mc", "spacingmark", .spacingMark), ("me", "enclosingmark", .enclosingMark),
        ("nd", "decimalnumber", .decimalNumber), ("nl", "letternumber", .letterNumber),
        ("no", "othernumber", .otherNumber), ("pc", "connectorpunctuation", .connectorPunctuation),
        ("pd", "dashpunctuation", .dashPunctuation), ("ps", "openpunctuation", .openPunctuation),
        ("pe", "closepunctuation", .closePunctuation), ("pi", "initialpunctuation", .initialPunctuation),
        ("pf", "finalpunctuation", .finalPunctuation), ("po", "otherpunctuation", .otherPunctuation),
        ("sm", "mathsymbol", .mathSymbol), ("sc", "currencysymbol", .currencySymbol),
        ("sk", "modifiersymbol", .modifierSymbol), ("so", "othersymbol", .otherSymbol),
        ("zs", "spaceseparator", .spaceSeparator), ("zl", "lineseparator", .lineSeparator),
        ("zp", "paragraphseparator", .paragraphSeparator), ("cc", "control", .control), ("cf", "format", .format),
        ("cs", "surrogate", .surrogate), ("co", "privateuse", .privateUse), ("cn", "unassigned", .unassigned),
    ]

    private static let groups = [
        "letter": "l", "mark": "m", "combiningmark": "m", "number": "n", "punctuation": "p", "symbol": "s",
        "separator": "z", "other": "c",
    ]

    private static let codes: [Unicode.GeneralCategory: UInt8] = Dictionary(
        uniqueKeysWithValues: categories.enumerated().map { ($1.category, UInt8($0)) })

    private static func code(of category: Unicode.GeneralCategory) -> UInt8 { codes[category] ?? 0 }

    private static func set(where holds: (UInt8) -> Bool) -> ScalarSet {
        let answers = (UInt8.min...UInt8.max).map(holds)
        var ranges: [ClosedRange<UInt32>] = []
        var start = 0
        while start < facts.count {
            let answer = answers[Int(facts[start])]
            var end = start + 1
            while end < facts.count, end != 0x40000, answers[Int(facts[end])] == answer { end += 1 }
            let shift = start < 0x40000 ? 0 : 0xE0000 - 0x40000
            if answer { ranges.append(UInt32(start + shift)...UInt32(end - 1 + shift)) }
            start = end
        }
        if holds(code(of: .unassigned)) {
            ranges += [0x40000...0xDFFFF, 0xE1000...0xEFFFF, 0xFFFFE...0xFFFFF, 0x10FFFE...0x10FFFF]
        }
        if holds(code(of: .privateUse)) { ranges += [0xF0000...0xFFFFD, 0x100000...0x10FFFD] }
        return ScalarSet(ranges)
    }

    /// The characters of a general category ("lu") or a group of them ("l").
    static func category(_ prefix: String) -> ScalarSet {
        let wanted = categories.map { $0.short.hasPrefix(prefix) } + [false, false]  // The codes have five bits.
        return set { wanted[Int($0 & 31)] }
    }

    static let letters = category("l")
    static let numbers = category("n")
    static let alphabetic = set { $0 & alphabeticFlag != 0 }
    static let digits = category("nd")
    static let space = ScalarSet([
        0x9...0xD, 0x20...0x20, 0x85...0x85, 0xA0...0xA0, 0x1680...0x1680, 0x2000...0x200A, 0x2028...0x2029,
        0x202F...0x202F, 0x205F...0x205F, 0x3000...0x3000,
    ])
    /// `[\w]` and `[[:word:]]`.
    static let word = alphabetic.union(category("m")).union(digits).union(category("pc"))
    /// `\w` outside brackets, `\b` and `\p{Word}`: Oniguruma counts six Latin-1 numbers as well.
    static let wideWord = word.union(ScalarSet("²", "³", "¹", "¼", "½", "¾"))
    static let hexDigits = ScalarSet([0x30...0x39, 0x41...0x46, 0x61...0x66])
    static let cased = set { $0 & (uppercaseFlag | lowercaseFlag) != 0 }

    /// What the Digits pre-tokenizer cuts at: the categories N as of Unicode 17, Rust's `char::is_numeric`.
    static let splitDigits: ScalarSet = {
        let young = (UInt32(0)..<0x20000).filter { value in
            guard let properties = UnicodeScalar(value)?.properties, let age = properties.age, age.major == 17 else {
                return false
            }
            return [.decimalNumber, .letterNumber, .otherNumber].contains(properties.generalCategory)
        }
        return numbers.union(ScalarSet(young.map { $0...$0 }))
    }()

    /// What the Punctuation pre-tokenizer cuts at: ASCII punctuation and the categories P as of Unicode 8, which is
    /// what `tokenizers` 0.23 knows for it.
    static let splitPunctuation: ScalarSet = {
        let ascii = ScalarSet([0x21...0x2F, 0x3A...0x40, 0x5B...0x60, 0x7B...0x7E])
        var scalars: [ClosedRange<UInt32>] = [0x166D...0x166D, 0x111C9...0x111C9]  // Symbols since then.
        for value in category("p").ranges.joined() {
            guard let age = UnicodeScalar(value)?.properties.age, age.major <= 8 else { continue }
            scalars.append(value...value)
        }
        return ascii.union(ScalarSet(scalars))
    }()

    /// What `\p{name}` or `[:name:]` holds; nil for a name this engine does not know.
    static func property(_ name: String) -> ScalarSet? {
        let key = String(name.lowercased().filter { $0 != " " && $0 != "_" && $0 != "-" })
        switch key {
        case "any": return .all
        case "assigned": return category("cn").inverted
        case "ascii": return ScalarSet([0...0x7F])
        case "alphabetic", "alpha": return alphabetic
        case "alnum": return alphabetic.union(digits)
        case "uppercase", "upper": return set { $0 & uppercaseFlag != 0 }
        case "lowercase", "lower": return set { $0 & lowercaseFlag != 0 }
        case "digit": return digits
        case "whitespace", "space": return space
        case "blank": return category("zs").union(ScalarSet("\t"))
        case "punct": return category("p").union(category("s"))
        case "cntrl": return category("cc")
        case "xdigit": return hexDigits
        case "word": return word
        case "print": return graph.union(category("zs"))
        case "graph": return graph
        default: break
        }
        if let group = groups[key] { return category(group) }
        if let match = categories.first(where: { $0.short == key || $0.long == key }) { return category(match.short) }
        if key.count == 1, "lmnpszc".contains(key) { return category(key) }
        return scripts[key]
    }

    /// Everything that is printed and not white space.
    private static let graph = space.union(category("cc")).union(category("cn")).union(category("cs")).inverted

    /// The scripts that split patterns of published tokenizers name (Unicode 16, Scripts.txt).
    private static let scripts: [String: ScalarSet] = [
        "han": ScalarSet([
            0x2E80...0x2E99, 0x2E9B...0x2EF3, 0x2F00...0x2FD5, 0x3005...0x3005, 0x3007...0x3007, 0x3021...0x3029,
            0x3038...0x303B, 0x3400...0x4DBF, 0x4E00...0x9FFF, 0xF900...0xFA6D, 0xFA70...0xFAD9, 0x16FE2...0x16FE3,
            0x16FF0...0x16FF1, 0x20000...0x2A6DF, 0x2A700...0x2B739, 0x2B740...0x2B81D, 0x2B820...0x2CEA1,
            0x2CEB0...0x2EBE0, 0x2EBF0...0x2EE5D, 0x2F800...0x2FA1D, 0x30000...0x3134A, 0x31350...0x323AF,
        ]),
        "hiragana": ScalarSet([
            0x3041...0x3096, 0x309D...0x309F, 0x1B001...0x1B11F, 0x1B132...0x1B132, 0x1B150...0x1B152,
            0x1F200...0x1F200,
        ]),
        "katakana": ScalarSet([
            0x30A1...0x30FA, 0x30FD...0x30FF, 0x31F0...0x31FF, 0x32D0...0x32FE, 0x3300...0x3357, 0xFF66...0xFF6F,
            0xFF71...0xFF9D, 0x1AFF0...0x1AFF3, 0x1AFF5...0x1AFFB, 0x1AFFD...0x1AFFE, 0x1B000...0x1B000,
            0x1B120...0x1B122, 0x1B155...0x1B155, 0x1B164...0x1B167,
        ]),
        "hangul": ScalarSet([
            0x1100...0x11FF, 0x302E...0x302F, 0x3131...0x318E, 0x3200...0x321E, 0x3260...0x327E, 0xA960...0xA97C,
            0xAC00...0xD7A3, 0xD7B0...0xD7C6, 0xD7CB...0xD7FB, 0xFFA0...0xFFBE, 0xFFC2...0xFFC7, 0xFFCA...0xFFCF,
            0xFFD2...0xFFD7, 0xFFDA...0xFFDC,
        ]),
        "thai": ScalarSet([0xE01...0xE3A, 0xE40...0xE5B]),
        "cyrillic": ScalarSet([
            0x400...0x484, 0x487...0x52F, 0x1C80...0x1C8A, 0x1D2B...0x1D2B, 0x1D78...0x1D78, 0x2DE0...0x2DFF,
            0xA640...0xA69F, 0xFE2E...0xFE2F, 0x1E030...0x1E06D, 0x1E08F...0x1E08F,
        ]),
    ]
}

/// Simple case folding: which characters are the same letter to `(?i)`.
enum CaseFolding {
    /// The folded form of a character, for cased characters that have company.
    private static let fold: [UInt32: UInt32] = {
        var fold: [UInt32: UInt32] = [:]
        for range in UnicodeClasses.cased.union(UnicodeClasses.category("lt")).ranges + [0x345...0x345] {
            for value in range where value != 0x131 { fold[value] = lower(upper(value)) }
        }
        return fold
    }()

    private static let members: [UInt32: [UInt32]] = Dictionary(grouping: fold.keys.sorted()) { fold[$0] ?? $0 }

    private static func upper(_ value: UInt32) -> UInt32 {
        one(UnicodeScalar(value)?.properties.uppercaseMapping) ?? value
    }
    private static func lower(_ value: UInt32) -> UInt32 {
        one(UnicodeScalar(value)?.properties.lowercaseMapping) ?? value
    }
    private static func one(_ text: String?) -> UInt32? {
        guard let scalars = text?.unicodeScalars, scalars.count == 1 else { return nil }
        return scalars.first?.value
    }

    /// The set with every other case of its characters.
    static func closure(of set: ScalarSet) -> ScalarSet {
        guard set != .all else { return set }
        var more: [ClosedRange<UInt32>] = []
        for company in members.values where company.count > 1 && company.contains(where: set.contains) {
            more += company.map { $0...$0 }
        }
        return ScalarSet(set.ranges + more)
    }
}
