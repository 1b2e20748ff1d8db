internal import MartletCore

// Filters that give a string.
extension TemplateInterpreter {
    func applyText(
        _ filter: TemplateFilter, _ value: TemplateValue, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        let name = filter.rawValue
        switch filter {
        case .join: return try joined(value, arguments)
        case .indent: return try makeString(try indented(value, arguments))
        case .truncate: return try truncated(value, arguments)
        default: break
        }
        let text = try text(value)
        try charge(text.utf8.count >> 4)
        if filter != .trim, filter != .replace { try charge(characters: text.utf8.count) }
        switch filter {
        case .upper: return .string(text.uppercased())
        case .lower: return .string(text.lowercased())
        case .capitalize: return .string(text.capitalizedFirst)
        case .title: return .string(titled(text))
        case .trim:
            let chars = try bind(arguments, to: name, ["chars"])[0].flatMap { $0.isNone ? nil : $0 }
            return .string(text.stripped(try string(chars, name)))
        case .replace:
            let given = try bind(arguments, to: name, ["old", "new", "count"], required: 2)
            let count = try integer(given[2].flatMap { $0.isNone ? nil : $0 }, name)
            return try replaced(text, try self.text(given[0] ?? .none), try self.text(given[1] ?? .none), count ?? -1)
        case .center:
            return .string(padded(text, try width(try bind(arguments, to: name, ["width"])[0], name, default: 80), 0))
        case .format:
            if arguments.named.isEmpty {
                return try makeString(try percentFormat(text, .tuple(ListBox(arguments.positional))))
            }
            guard arguments.positional.isEmpty else {
                throw failure("'format' takes positional or named values, not both")
            }
            return try makeString(
                try percentFormat(text, try makeDict(arguments.named.map { (.string($0.name), $0.value) })))
        case .escape: return try makeString(escaped(text))
        case .urlencode: return try makeString(urlEncoded(text))
        case .wordcount:
            let isWord = { (s: Unicode.Scalar) in
                s == "_" || s.properties.isAlphabetic || s.properties.numericType != nil
            }
            return .int(text.unicodeScalars.split { !isWord($0) }.count)
        default: throw failure("the filter '\(name)' cannot be applied")
        }
    }

    /// `replace` of text, after a check of how long the result will be. A negative count means all.
    func replaced(_ text: String, _ old: String, _ new: String, _ count: Int) throws(MartletError) -> TemplateValue {
        let limit = count < 0 ? Int.max : count
        let hits = old.isEmpty ? min(limit, text.scalarCount + 1) : text.offsets(of: old, limit: limit).count
        guard hits > 0 else { return .string(text) }
        let (growth, overflow) = hits.multipliedReportingOverflow(by: new.utf8.count)
        try charge(bytes: overflow ? .max : growth + text.utf8.count)
        return .string(text.replacing(text: old, with: new, limit: limit))
    }

    private func joined(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: "join", ["d", "attribute"])
        var items = try items(of: value)
        if let path = given[1], !path.isNone {
            for i in items.indices { items[i] = try find(path, in: items[i]) }
        }
        return try joined(items, with: try given[0].map { d throws(MartletError) in try text(d) } ?? "", strict: false)
    }

    /// The texts of the items with a separator between; `strict` takes only strings, as `str.join` does.
    func joined(_ items: [TemplateValue], with separator: String, strict: Bool) throws(MartletError) -> TemplateValue {
        var out = ""
        for (i, item) in items.enumerated() {
            if i > 0 { out += separator }
            let part = strict ? try string(item, "join") ?? "" : try text(item)
            try charge(bytes: part.utf8.count + separator.utf8.count)
            out += part
        }
        return try makeString(out)
    }

    private func indented(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> String {
        let given = try bind(arguments, to: "indent", ["width", "first", "blank"])
        var margin = "    "
        if case .string(let text)? = given[0] {
            margin = text
        } else if let width = given[0] {
            margin = String(repeating: " ", count: try self.width(width, "indent", default: 4))
        }
        let lines = ((try string(value, "indent") ?? "") + "\n").lines()
        try charge(bytes: lines.count * margin.utf8.count)
        let keepsBlank = given[2]?.isTrue ?? false
        var out = given[1]?.isTrue ?? false ? margin : ""
        for (i, line) in lines.enumerated() {
            if i > 0 { out += "\n" + (keepsBlank || !line.isEmpty ? margin : "") }
            out += line
        }
        return out
    }

    private func truncated(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: "truncate", ["length", "killwords", "end", "leeway"])
        let end = try string(given[2], "truncate") ?? "..."
        let length = try integer(given[0], "truncate") ?? 255
        let leeway = try integer(given[3].flatMap { $0.isNone ? nil : $0 }, "truncate") ?? 5
        guard length >= end.scalarCount, leeway >= 0 else { throw failure("'truncate' cannot keep so few characters") }
        if try self.length(of: value) <= length.addingReportingOverflow(leeway).partialValue { return value }
        let text = try string(value, "truncate") ?? ""
        let head = String(text.unicodeScalars.prefix(length - end.scalarCount))
        if given[1]?.isTrue ?? false { return try makeString(head + end) }
        return try makeString((head.lastOffset(of: " ").map { head.part(0..<$0) } ?? head) + end)
    }

    private func titled(_ text: String) -> String {
        var out = ""
        var startsWord = true
        for scalar in text.unicodeScalars {
            let isBreak = scalar.isPythonSpace || "-({[<".unicodeScalars.contains(scalar)
            out +=
                isBreak
                ? String(scalar) : startsWord ? scalar.properties.uppercaseMapping : scalar.properties.lowercaseMapping
            startsWord = isBreak
        }
        return out
    }

    private func escaped(_ text: String) -> String {
        var out = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "&": out += "&amp;"
            case "<": out += "&lt;"
            case ">": out += "&gt;"
            case "'": out += "&#39;"
            case "\"": out += "&#34;"
            default: out.unicodeScalars.append(scalar)
            }
        }
        return out
    }

    private func urlEncoded(_ text: String) -> String {
        var out = ""
        for byte in text.utf8 {
            let scalar = Unicode.Scalar(byte)
            let isPlain =
                byte < 0x80
                && (scalar.properties.isAlphabetic || (byte >= 0x30 && byte <= 0x39) || "_.-~/".utf8.contains(byte))
            out += isPlain ? String(scalar) : "%" + (byte < 16 ? "0" : "") + String(byte, radix: 16, uppercase: true)
        }
        return out
    }

    /// Fills up to `width` with `fill`: after the text (-1), before it (1) or on both sides, an odd character going
    /// where `str.center` puts it (0) or to the right (2).
    func padded(_ text: String, _ width: Int, _ side: Int, fill: String = " ") -> String {
        let missing = width - text.scalarCount
        guard missing > 0 else { return text }
        let left = side < 0 ? 0 : side == 1 ? missing : missing / 2 + (side == 0 ? missing & width & 1 : 0)
        return String(repeating: fill, count: left) + text + String(repeating: fill, count: missing - left)
    }
}
