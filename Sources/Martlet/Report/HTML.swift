/// The little HTML that the report needs.
enum HTML {
    static func escape(_ text: String) -> String {
        var out = ""
        for character in text.unicodeScalars {
            switch character {
            case "&": out += "&amp;"
            case "<": out += "&lt;"
            case ">": out += "&gt;"
            case "\"": out += "&quot;"
            // HTML has no control characters, and an untrained model may write them.
            case _ where character.value < 0x20 && character != "\n" && character != "\t": out += "\u{FFFD}"
            default: out.unicodeScalars.append(character)
            }
        }
        return out
    }

    /// A table; columns whose index is in `numbers` are set to the right.
    static func table(_ head: [String], _ rows: [[String]], numbers: Set<Int> = [], sumsUp: Bool = false) -> String {
        func cell(_ tag: String, _ i: Int, _ text: String) -> String {
            "<\(tag)\(numbers.contains(i) ? " class=\"n\"" : "")>\(escape(text))</\(tag)>"
        }
        var out = "<div class=\"scroll\"><table>"
        if !head.isEmpty {
            out += "<thead><tr>" + head.enumerated().map { cell("th", $0, $1) }.joined() + "</tr></thead>"
        }
        out += "<tbody>"
        for (r, row) in rows.enumerated() {
            let isSum = sumsUp && r == rows.count - 1
            out +=
                "<tr\(isSum ? " class=\"sum\"" : "")>" + row.enumerated().map { cell("td", $0, $1) }.joined() + "</tr>"
        }
        return out + "</tbody></table></div>\n"
    }

    static func section(_ title: String, _ body: String, note: String? = nil) -> String {
        guard !body.isEmpty else { return "" }
        let note = note.map { "<p class=\"note\">\(escape($0))</p>" } ?? ""
        return "<section><h2>\(escape(title))</h2>\(note)\(body)</section>\n"
    }
}
