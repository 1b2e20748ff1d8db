internal import MartletCore

extension TemplateValue {
    /// A JSON value as Python's `json.loads` gives it.
    init(_ json: JSON) {
        switch json {
        case .null: self = .none
        case .bool(let value): self = .bool(value)
        case .integer(let value): self = .int(value)
        case .number(let value): self = .float(value)
        case .string(let value): self = .string(value)
        case .array(let items): self = .list(ListBox(items.map { TemplateValue($0) }))
        case .object(let object): self = .dict(DictBox(object.map { (.string($0.key), TemplateValue($0.value)) }))
        }
    }

    /// The list `messages`, whose dicts know their positions.
    static func messages(_ messages: [JSONObject]) -> TemplateValue {
        .list(
            ListBox(
                messages.enumerated().map { i, message in
                    .dict(DictBox(message.map { (.string($0.key), TemplateValue($0.value)) }, message: i))
                }))
    }
}

/// How `tojson` lays out its text.
private struct JSONLayout {
    var escapesNonASCII = false
    var indent: String?
    var itemSeparator = ", "
    var keySeparator = ": "
    var sortsKeys = false
}

// transformers' `tojson`: Python's `json.dumps` without ASCII or HTML escapes.
extension TemplateInterpreter {
    func toJSON(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> String {
        var layout = JSONLayout()
        if !(arguments.positional.isEmpty && arguments.named.isEmpty) {
            let given = try bind(arguments, to: "tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])
            layout.escapesNonASCII = given[0]?.isTrue ?? false
            layout.sortsKeys = given[3]?.isTrue ?? false
            switch given[1] {
            case nil, .some(.none): break
            case .string(let text): layout.indent = text
            case let width?: layout.indent = String(repeating: " ", count: try self.width(width, "tojson", default: 0))
            }
            if layout.indent != nil { layout.itemSeparator = "," }
            if let separators = given[2], !separators.isNone {
                let pair = try items(of: separators)
                guard pair.count == 2 else { throw failure("'tojson' needs two separators") }
                layout.itemSeparator = try string(pair[0], "tojson") ?? ""
                layout.keySeparator = try string(pair[1], "tojson") ?? ""
            }
        }
        var out = ""
        try writeJSON(value, layout, to: &out, level: 0)
        return out
    }

    private func writeJSON(
        _ value: TemplateValue, _ layout: JSONLayout, to out: inout String, level: Int
    ) throws(MartletError) {
        try charge(1)
        switch value {
        case .none: out += "null"
        case .bool(let value): out += value ? "true" : "false"
        case .int(let value): out += String(value)
        case .float(let value): out += jsonFloat(value)
        case .string(let text):
            try charge(text.utf8.count >> 4)
            JSON.quote(text, escapesNonASCII: layout.escapesNonASCII, to: &out)
        case .list(let box), .tuple(let box):
            out += "["
            for (i, item) in box.items.enumerated() {
                if i > 0 { out += layout.itemSeparator }
                try writeBreak(layout, to: &out, level + 1)
                try writeJSON(item, layout, to: &out, level: level + 1)
            }
            if !box.items.isEmpty { try writeBreak(layout, to: &out, level) }
            out += "]"
        case .dict(let box): try writeJSON(box, layout, to: &out, level: level)
        case .undefined(let name):
            throw failure("'\(name)' is undefined and has no JSON", fix: "guard its use with 'is defined'")
        default: throw failure("'\(value.typeName)' has no JSON", fix: "turn it into a list with '| list' first")
        }
    }

    private func writeJSON(_ box: DictBox, _ layout: JSONLayout, to out: inout String, level: Int) throws(MartletError)
    {
        var entries = box.entries
        if layout.sortsKeys {
            let pairs: [TemplateValue] = entries.map { .tuple(ListBox([$0.key, $0.value])) }
            let sorted = try sorted(
                pairs, by: { pair throws(MartletError) in try item(.int(0), of: pair) }, reverse: false)
            entries = sorted.compactMap {
                if case .tuple(let pair) = $0 { (pair.items[0], pair.items[1]) } else { nil }
            }
        }
        out += "{"
        for (i, entry) in entries.enumerated() {
            if i > 0 { out += layout.itemSeparator }
            try writeBreak(layout, to: &out, level + 1)
            switch entry.key {
            case .string(let text): JSON.quote(text, escapesNonASCII: layout.escapesNonASCII, to: &out)
            case .none: out += "\"null\""
            case .bool(let value): out += value ? "\"true\"" : "\"false\""
            case .int(let value): out += "\"\(value)\""
            case .float(let value): out += "\"" + jsonFloat(value) + "\""
            default: throw failure("JSON keys cannot be '\(entry.key.typeName)'")
            }
            out += layout.keySeparator
            try writeJSON(entry.value, layout, to: &out, level: level + 1)
        }
        if !entries.isEmpty { try writeBreak(layout, to: &out, level) }
        out += "}"
    }

    private func writeBreak(_ layout: JSONLayout, to out: inout String, _ level: Int) throws(MartletError) {
        guard let indent = layout.indent else { return }
        try charge(bytes: indent.utf8.count * level)
        out += "\n"
        for _ in 0..<level { out += indent }
    }

    private func jsonFloat(_ value: Double) -> String {
        value.isNaN ? "NaN" : value.isInfinite ? (value < 0 ? "-Infinity" : "Infinity") : pythonFloat(value)
    }
}
