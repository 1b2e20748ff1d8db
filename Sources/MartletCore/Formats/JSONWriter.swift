extension JSON {
    /// How `text(_:)` prints; the defaults are those of Python's `json.dumps`, without ASCII escapes.
    package struct Style: Sendable {
        package var indent: Int?
        package var itemSeparator = ", "
        package var keySeparator = ": "
        package var escapesNonASCII = false
        package var sortsKeys = false

        package init(
            indent: Int? = nil, itemSeparator: String? = nil, keySeparator: String = ": ",
            escapesNonASCII: Bool = false,
            sortsKeys: Bool = false
        ) {
            self.indent = indent
            self.itemSeparator = itemSeparator ?? (indent == nil ? ", " : ",")
            self.keySeparator = keySeparator
            self.escapesNonASCII = escapesNonASCII
            self.sortsKeys = sortsKeys
        }
        package static let compact = Style(itemSeparator: ",", keySeparator: ":")
        package static let pretty = Style(indent: 2)
    }

    package func text(_ style: Style = Style()) -> String {
        var out = ""
        write(to: &out, style, level: 0)
        return out
    }

    private func write(to out: inout String, _ style: Style, level: Int) {
        switch self {
        case .null: out += "null"
        case .bool(let value): out += value ? "true" : "false"
        case .integer(let value): out += String(value)
        case .number(let value):
            out += value.isNaN ? "NaN" : value.isInfinite ? (value < 0 ? "-Infinity" : "Infinity") : "\(value)"
        case .string(let value): JSON.quote(value, escapesNonASCII: style.escapesNonASCII, to: &out)
        case .array(let items):
            JSON.list("[", "]", items, to: &out, style, level) { item, out in
                item.write(to: &out, style, level: level + 1)
            }
        case .object(let object):
            let members = style.sortsKeys ? object.sorted { $0.key < $1.key } : Array(object)
            JSON.list("{", "}", members, to: &out, style, level) { member, out in
                JSON.quote(member.key, escapesNonASCII: style.escapesNonASCII, to: &out)
                out += style.keySeparator
                member.value.write(to: &out, style, level: level + 1)
            }
        }
    }

    private static func list<Item>(
        _ open: String, _ close: String, _ items: [Item], to out: inout String, _ style: Style, _ level: Int,
        _ write: (Item, inout String) -> Void
    ) {
        out += open
        for (i, item) in items.enumerated() {
            if i > 0 { out += style.itemSeparator }
            if let indent = style.indent { out += "\n" + String(repeating: " ", count: indent * (level + 1)) }
            write(item, &out)
        }
        if let indent = style.indent, !items.isEmpty { out += "\n" + String(repeating: " ", count: indent * level) }
        out += close
    }

    /// `text` in quotes, as Python's `json.dumps` writes it.
    package static func quote(_ text: String, escapesNonASCII: Bool, to out: inout String) {
        let isPlain = text.utf8.allSatisfy {
            $0 >= 0x20 && $0 != 0x22 && $0 != 0x5C && (!escapesNonASCII || $0 < 0x7F)
        }
        out += "\""
        if isPlain { out += text } else { escape(text, escapesNonASCII, to: &out) }
        out += "\""
    }

    private static func escape(_ text: String, _ escapesNonASCII: Bool, to out: inout String) {
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": out += "\\\""
            case "\\": out += "\\\\"
            case "\n": out += "\\n"
            case "\r": out += "\\r"
            case "\t": out += "\\t"
            case "\u{08}": out += "\\b"
            case "\u{0C}": out += "\\f"
            case _ where scalar.value < 0x20 || (escapesNonASCII && scalar.value > 0x7E):
                for unit in String(scalar).utf16 {
                    let hex = String(unit, radix: 16)
                    out += "\\u" + String(repeating: "0", count: 4 - hex.count) + hex
                }
            default: out.unicodeScalars.append(scalar)
            }
        }
    }
}
