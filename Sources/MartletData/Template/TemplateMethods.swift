internal import MartletCore

/// The methods of strings, dicts and lists, by Python's names.
enum TemplateMethod: String {
    case capitalize, casefold, center, count, endswith, expandtabs, find, format, index, isalnum, isalpha, isascii
    case isdecimal, isdigit, islower, isnumeric, isspace, istitle, isupper, join, ljust, lower, lstrip, partition
    case removeprefix, removesuffix, replace, rfind, rindex, rjust, rpartition, rsplit, rstrip, split, splitlines
    case startswith, strip, swapcase, title, upper, zfill
    case get, items, keys, values, copy

    /// Methods that would change a value; the sandbox hides them.
    static let forbidden: Set<String> = [
        "append", "clear", "extend", "insert", "pop", "popitem", "remove", "reverse", "setdefault", "sort", "update",
    ]
    static let forbiddenOfDicts: Set<String> = ["clear", "pop", "popitem", "setdefault", "update"]

    /// Whether the method does not look at each character by itself.
    var isCheap: Bool {
        switch self {
        case .startswith, .endswith, .strip, .lstrip, .rstrip, .split, .rsplit, .replace, .find, .rfind, .index,
            .rindex,
            .count, .partition, .rpartition, .removeprefix, .removesuffix, .join, .format:
            true
        default: false
        }
    }

    func applies(to value: TemplateValue) -> Bool {
        switch (value, self) {
        case (.string, .get), (.string, .items), (.string, .keys), (.string, .values), (.string, .copy): false
        case (.string, _): true
        case (.dict, .get), (.dict, .items), (.dict, .keys), (.dict, .values), (.dict, .copy): true
        case (.list, .count), (.list, .index), (.list, .copy), (.tuple, .count), (.tuple, .index): true
        default: false
        }
    }
}

extension TemplateInterpreter {
    func call(
        _ method: TemplateMethod, on receiver: TemplateValue, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        switch receiver {
        case .string(let text):
            try charge(text.utf8.count >> 4)
            if !method.isCheap { try charge(characters: text.utf8.count) }
            return try call(method, on: text, arguments)
        case .dict(let box): return try call(method, on: box, receiver, arguments)
        case .list(let box), .tuple(let box):
            if method == .copy { return receiver }
            let wanted = try bind(arguments, to: method.rawValue, ["value"], required: 1)[0] ?? .none
            var count = 0
            for (i, item) in box.items.enumerated() where try equal(item, wanted) {
                if method == .index { return .int(i) }
                count += 1
            }
            if method == .index { throw failure("\(try repr(wanted)) is not in the list") }
            return .int(count)
        default: throw failure("'\(receiver.typeName)' has no method '\(method.rawValue)'")
        }
    }

    private func call(
        _ method: TemplateMethod, on box: DictBox, _ receiver: TemplateValue, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        if method == .get {
            guard arguments.named.isEmpty else { throw failure("'get' takes no keyword arguments") }
            let given = try bind(arguments, to: "get", ["key", "default"], required: 1)
            let key = given[0] ?? .none
            try requireHashable(key)
            return try lookUp(key, in: box) ?? given[1] ?? .none
        }
        _ = try bind(arguments, to: method.rawValue, [])
        switch method {
        case .keys: return .view(DictView(.keys, box))
        case .values: return .view(DictView(.values, box))
        case .items: return .view(DictView(.items, box))
        default: return receiver
        }
    }

    // MARK: strings

    private func call(
        _ method: TemplateMethod, on text: String, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        let name = method.rawValue
        switch method {
        case .split, .rsplit: return try split(text, method, arguments)
        case .strip, .lstrip, .rstrip:
            let chars = try bind(arguments, to: name, ["chars"])[0].flatMap { $0.isNone ? nil : $0 }
            return .string(
                text.stripped(try string(chars, name), leading: method != .rstrip, trailing: method != .lstrip))
        case .startswith, .endswith: return .bool(try hasAffix(text, method, arguments))
        case .upper: return .string(text.uppercased())
        case .lower, .casefold: return .string(text.lowercased())
        case .capitalize: return .string(text.capitalizedFirst)
        case .replace:
            let given = try bind(arguments, to: name, ["old", "new", "count"], required: 2)
            return try replaced(
                text, try string(given[0], name) ?? "", try string(given[1], name) ?? "",
                try integer(given[2], name) ?? -1)
        case .join:
            let items = try items(of: try bind(arguments, to: name, ["iterable"], required: 1)[0] ?? .none)
            return try joined(items, with: text, strict: true)
        case .format: return try makeString(try braceFormat(text, arguments))
        case .find, .rfind, .index, .rindex, .count: return try search(text, method, arguments)
        case .partition, .rpartition: return try partition(text, method, arguments)
        case .removeprefix, .removesuffix:
            let affix = try string(try bind(arguments, to: name, ["affix"], required: 1)[0], name) ?? ""
            if method == .removeprefix {
                return .string(text.hasText(prefix: affix) ? text.part(affix.utf8.count..<text.utf8.count) : text)
            }
            return .string(text.hasText(suffix: affix) ? text.part(0..<text.utf8.count - affix.utf8.count) : text)
        case .splitlines:
            let keeps = try bind(arguments, to: name, ["keepends"])[0]?.isTrue ?? false
            return try makeList(text.lines(keepingEnds: keeps).map { .string($0) })
        default: return try reshape(text, method, arguments)
        }
    }

    private func split(
        _ text: String, _ method: TemplateMethod, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: method.rawValue, ["sep", "maxsplit"])
        let most = try integer(given[1], method.rawValue) ?? -1
        let limit = most < 0 ? Int.max : most
        guard let separator = try string(given[0].flatMap { $0.isNone ? nil : $0 }, method.rawValue) else {
            let words = method == .split || most < 0 ? text.words(limit: limit) : text.wordsFromEnd(limit: limit)
            return try makeList(words.map { .string($0) })
        }
        guard !separator.isEmpty else { throw failure("'\(method.rawValue)' needs a separator that is not empty") }
        if method == .split || most < 0 {
            return try makeList(text.pieces(around: separator, limit: limit).map { .string($0) })
        }
        var rest = text
        var pieces: [TemplateValue] = []
        while pieces.count < limit, let cut = rest.lastOffset(of: separator) {
            try charge(bytes: rest.utf8.count)
            pieces.append(.string(rest.part(cut + separator.utf8.count..<rest.utf8.count)))
            rest = rest.part(0..<cut)
        }
        return try makeList([.string(rest)] + pieces.reversed())
    }

    private func hasAffix(
        _ text: String, _ method: TemplateMethod, _ arguments: CallValues
    ) throws(MartletError) -> Bool {
        let given = try bind(arguments, to: method.rawValue, ["affix", "start", "end"], required: 1)
        let text = try windowed(text, given[1], given[2], method.rawValue).text
        var affixes = [given[0] ?? .none]
        if case .tuple(let box)? = given[0] { affixes = box.items }
        for affix in affixes {
            let affix = try string(affix, method.rawValue) ?? ""
            if method == .startswith ? text.hasText(prefix: affix) : text.hasText(suffix: affix) { return true }
        }
        return false
    }

    /// The part of the text between two Python indices, and how many characters stand before it.
    private func windowed(
        _ text: String, _ start: TemplateValue?, _ end: TemplateValue?, _ name: String
    ) throws(MartletError) -> (text: String, offset: Int) {
        guard start != nil || end != nil else { return (text, 0) }
        let count = text.scalarCount
        func clamped(_ bound: Int) -> Int { min(max(bound < 0 ? max(bound, -count) + count : bound, 0), count) }
        let from = clamped(try integer(start.flatMap { $0.isNone ? nil : $0 }, name) ?? 0)
        let to = clamped(try integer(end.flatMap { $0.isNone ? nil : $0 }, name) ?? count)
        guard from < to else { return ("", from) }
        return (String(text.unicodeScalars.dropFirst(from).prefix(to - from)), from)
    }

    private func search(
        _ text: String, _ method: TemplateMethod, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: method.rawValue, ["sub", "start", "end"], required: 1)
        let wanted = try string(given[0], method.rawValue) ?? ""
        let window = try windowed(text, given[1], given[2], method.rawValue)
        if method == .count {
            return .int(wanted.isEmpty ? window.text.scalarCount + 1 : window.text.offsets(of: wanted).count)
        }
        let isFirst = method == .find || method == .index
        if let at = isFirst ? window.text.firstOffset(of: wanted) : window.text.lastOffset(of: wanted) {
            return .int(window.offset + window.text.part(0..<at).scalarCount)
        }
        if method == .index || method == .rindex { throw failure("\(pythonQuoted(wanted)) is not in the string") }
        return .int(-1)
    }

    private func partition(
        _ text: String, _ method: TemplateMethod, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        let separator =
            try string(try bind(arguments, to: method.rawValue, ["sep"], required: 1)[0], method.rawValue) ?? ""
        guard !separator.isEmpty else { throw failure("'\(method.rawValue)' needs a separator that is not empty") }
        guard let at = method == .partition ? text.firstOffset(of: separator) : text.lastOffset(of: separator) else {
            let empty = TemplateValue.string("")
            return try makeTuple(method == .partition ? [.string(text), empty, empty] : [empty, empty, .string(text)])
        }
        let tail = text.part(at + separator.utf8.count..<text.utf8.count)
        return try makeTuple([.string(text.part(0..<at)), .string(separator), .string(tail)])
    }

    /// Padding, case, and what the characters are.
    private func reshape(
        _ text: String, _ method: TemplateMethod, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        let name = method.rawValue
        switch method {
        case .center, .ljust, .rjust:
            let given = try bind(arguments, to: name, ["width", "fillchar"], required: 1)
            let fill = try string(given[1], name) ?? " "
            guard fill.scalarCount == 1 else { throw failure("'\(name)' fills with exactly one character") }
            let side = method == .center ? 0 : method == .ljust ? -1 : 1
            return .string(padded(text, try width(given[0], name, default: 0), side, fill: fill))
        case .zfill:
            let width = try width(try bind(arguments, to: name, ["width"], required: 1)[0], name, default: 0)
            let sign = text.hasText(prefix: "-") || text.hasText(prefix: "+") ? 1 : 0
            let digits = text.part(sign..<text.utf8.count)
            return .string(text.part(0..<sign) + padded(digits, width - sign, 1, fill: "0"))
        case .expandtabs:
            let size = try width(try bind(arguments, to: name, ["tabsize"])[0], name, default: 8)
            return try makeString(try expandTabs(text, size))
        default: break
        }
        _ = try bind(arguments, to: name, [])
        switch method {
        case .title: return .string(wordsCapitalized(text))
        case .swapcase:
            return .string(
                text.unicodeScalars.reduce(into: "") { out, scalar in
                    let properties = scalar.properties
                    out += properties.isUppercase ? properties.lowercaseMapping : properties.uppercaseMapping
                })
        case .isascii: return .bool(text.utf8.allSatisfy { $0 < 0x80 })
        case .islower: return .bool(isCased(text) { $0.properties.isUppercase })
        case .isupper: return .bool(isCased(text) { $0.properties.isLowercase })
        case .istitle: return .bool(isCased(text) { _ in false } && sameText(text, wordsCapitalized(text)))
        default: return .bool(!text.isEmpty && text.unicodeScalars.allSatisfy { has(method, $0) })
        }
    }

    private func has(_ method: TemplateMethod, _ scalar: Unicode.Scalar) -> Bool {
        let properties = scalar.properties
        let isLetter = [.uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter]
            .contains(properties.generalCategory)
        switch method {
        case .isspace: return scalar.isPythonSpace
        case .isalpha: return isLetter
        case .isdecimal: return properties.generalCategory == .decimalNumber
        case .isdigit: return properties.numericType == .decimal || properties.numericType == .digit
        case .isnumeric: return properties.numericType != nil
        default: return isLetter || properties.numericType != nil
        }
    }

    /// Python's `str.title`: a letter after anything that is not a letter is a capital.
    private func wordsCapitalized(_ text: String) -> String {
        var out = ""
        var follows = false
        for scalar in text.unicodeScalars {
            let properties = scalar.properties
            out += follows ? properties.lowercaseMapping : properties.titlecaseMapping
            follows = properties.isCased
        }
        return out
    }

    private func expandTabs(_ text: String, _ size: Int) throws(MartletError) -> String {
        var out = ""
        var column = 0
        for scalar in text.unicodeScalars {
            if scalar == "\t" {
                let count = size > 0 ? size - column % size : 0
                try charge(bytes: count)
                out += String(repeating: " ", count: count)
                column += count
            } else {
                out.unicodeScalars.append(scalar)
                column = scalar == "\n" || scalar == "\r" ? 0 : column + 1
            }
        }
        return out
    }
}
