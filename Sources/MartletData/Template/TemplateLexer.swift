internal import MartletCore

/// A piece of a template: text, a bracket of a tag, or a word inside a tag.
struct TemplateToken: Sendable {
    enum Kind: Sendable {
        case data, variableBegin, variableEnd, blockBegin, blockEnd, name, string, integer, float, symbol, end
    }
    var kind: Kind
    /// The text of `data`, the name, the value of a string, or the spelling of a number or symbol.
    var text: String
    var line: Int
}

/// Cuts a template into tokens as Jinja2 does with `trim_blocks` and `lstrip_blocks` on and
/// `keep_trailing_newline` off: a newline after a block or comment goes, and so does the white space before one
/// that starts its line; `-` strips all white space on its side, `+` keeps it.
struct TemplateLexer {
    let name: String
    private let bytes: [UInt8]
    private var i = 0
    private var line = 1
    /// Whether the last thing consumed ended with a newline (or nothing was consumed yet).
    private var isLineStart = true
    private(set) var tokens: [TemplateToken] = []

    init(source: String, name: String) {
        self.name = name
        bytes = TemplateLexer.normalized(Array(source.utf8))
    }

    /// All line ends become `\n`, and one at the end goes.
    private static func normalized(_ source: [UInt8]) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(source.count)
        for (i, byte) in source.enumerated() {
            if byte == 0x0A, i > 0, source[i - 1] == 0x0D { continue }
            bytes.append(byte == 0x0D ? 0x0A : byte)
        }
        if bytes.last == 0x0A { bytes.removeLast() }
        return bytes
    }

    mutating func tokenize() throws(MartletError) -> [TemplateToken] {
        while i < bytes.count { try root() }
        add(.end, "")
        return tokens
    }

    func failure(_ reason: String) -> MartletError { templateSyntaxError(reason, name: name, line: line) }

    private mutating func add(_ kind: TemplateToken.Kind, _ text: String) {
        tokens.append(TemplateToken(kind: kind, text: text, line: line))
    }

    private func at(_ text: StaticString, _ offset: Int) -> Bool {
        guard offset >= 0, offset + text.utf8CodeUnitCount <= bytes.count else { return false }
        for k in 0..<text.utf8CodeUnitCount where bytes[offset + k] != text.utf8Start[k] { return false }
        return true
    }

    private func text(_ range: Range<Int>) -> String { String(decoding: bytes[range], as: UTF8.self) }

    /// Moves to `end`, counting lines.
    private mutating func advance(to end: Int) {
        for byte in bytes[i..<end] where byte == 0x0A { line += 1 }
        if end > i { isLineStart = bytes[end - 1] == 0x0A }
        i = end
    }

    /// The offset after the white space at `offset`.
    private func afterSpace(_ offset: Int) -> Int {
        var end = offset
        while end < bytes.count {
            let byte = bytes[end]
            if byte < 0x80 {
                guard Unicode.Scalar(byte).isPythonSpace else { return end }
                end += 1
            } else {
                guard let scalar = text(end..<min(end + 4, bytes.count)).unicodeScalars.first, scalar.isPythonSpace
                else { return end }
                end += UTF8.width(scalar)
            }
        }
        return end
    }

    // MARK: text and tags

    private mutating func root() throws(MartletError) {
        var open = i
        while open < bytes.count, !(at("{{", open) || at("{%", open) || at("{#", open)) { open += 1 }
        guard open < bytes.count else {
            add(.data, text(i..<open))
            return advance(to: open)
        }
        let isVariable = bytes[open + 1] == UInt8(ascii: "{")
        let sign = open + 2 < bytes.count ? bytes[open + 2] : 0
        let signWidth = sign == UInt8(ascii: "-") || sign == UInt8(ascii: "+") ? 1 : 0
        addData(upTo: open, sign: sign, stripsLine: !isVariable)
        advance(to: open)
        let inside = open + 2 + signWidth
        if at("{#", open) { return try comment(inside) }
        if !isVariable, let content = rawContent(inside) { return try raw(content) }
        add(isVariable ? .variableBegin : .blockBegin, "")
        advance(to: inside)
        try tag(isVariable: isVariable)
    }

    /// The text before a tag, stripped as the tag's sign and `lstrip_blocks` say.
    private mutating func addData(upTo end: Int, sign: UInt8, stripsLine: Bool) {
        var data = text(i..<end)
        if sign == UInt8(ascii: "-") {
            data = data.stripped(leading: false)
        } else if sign != UInt8(ascii: "+"), stripsLine {
            let newline = bytes[i..<end].lastIndex(of: 0x0A)
            let start = newline.map { $0 + 1 } ?? i
            if newline != nil || isLineStart, afterSpace(start) >= end { data = text(i..<start) }
        }
        if !data.isEmpty { add(.data, data) }
    }

    private mutating func comment(_ start: Int) throws(MartletError) {
        var end = start
        while end < bytes.count, !at("#}", end) { end += 1 }
        guard end < bytes.count else { throw failure("a comment '{#' is not closed") }
        closeTag(at: end + 2, sign: end > start ? bytes[end - 1] : 0)
    }

    /// Steps over what follows the closing bracket of a block: all space after `-`, else one newline unless `+`.
    private mutating func closeTag(at end: Int, sign: UInt8) {
        if sign == UInt8(ascii: "-") { return advance(to: afterSpace(end)) }
        advance(to: sign != UInt8(ascii: "+") && end < bytes.count && bytes[end] == 0x0A ? end + 1 : end)
    }

    /// The offset of the content after `{% raw %}`, if that is what stands here (`offset` is inside the bracket).
    private func rawContent(_ offset: Int) -> Int? {
        var end = afterSpace(offset)
        guard at("raw", end) else { return nil }
        end = afterSpace(end + 3)
        if at("-%}", end) { return afterSpace(end + 3) }
        return at("%}", end) ? end + 2 : nil
    }

    private mutating func raw(_ content: Int) throws(MartletError) {
        advance(to: content)
        var open = i
        while open < bytes.count {
            if at("{%", open) {
                let sign = open + 2 < bytes.count ? bytes[open + 2] : 0
                let signWidth = sign == UInt8(ascii: "-") || sign == UInt8(ascii: "+") ? 1 : 0
                let word = afterSpace(open + 2 + signWidth)
                let close = afterSpace(word + 6)
                if at("endraw", word), let end = [close, close + 1].first(where: { at("%}", $0) }),
                    end == close || at("-", close) || at("+", close)
                {
                    addData(upTo: open, sign: sign, stripsLine: true)
                    advance(to: open)
                    return closeTag(at: end + 2, sign: end == close ? 0 : bytes[close])
                }
            }
            open += 1
        }
        throw failure("a block '{% raw %}' is not closed with '{% endraw %}'")
    }

    // MARK: inside a tag

    private mutating func tag(isVariable: Bool) throws(MartletError) {
        var open: [UInt8] = []
        while true {
            advance(to: afterSpace(i))
            guard i < bytes.count else { throw failure("a tag is not closed") }
            if open.isEmpty, closes(isVariable: isVariable) { return }
            let byte = bytes[i]
            switch byte {
            case UInt8(ascii: "0")...UInt8(ascii: "9"): try number()
            case UInt8(ascii: "'"), UInt8(ascii: "\""): try string()
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "_"),
                0x80...:
                try word()
            default: try symbol(&open)
            }
        }
    }

    /// Steps over the end of the tag, if it stands here.
    private mutating func closes(isVariable: Bool) -> Bool {
        let sign = bytes[i]
        let signWidth = sign == UInt8(ascii: "-") || (sign == UInt8(ascii: "+") && !isVariable) ? 1 : 0
        guard isVariable ? at("}}", i + signWidth) : at("%}", i + signWidth) else { return false }
        add(isVariable ? .variableEnd : .blockEnd, "")
        let end = i + signWidth + 2
        if isVariable {
            advance(to: signWidth == 1 ? afterSpace(end) : end)
        } else {
            closeTag(at: end, sign: signWidth == 1 ? sign : 0)
        }
        return true
    }

    private mutating func word() throws(MartletError) {
        let rest = String(decoding: bytes[i..<min(bytes.count, i + 512)], as: UTF8.self).unicodeScalars
        let word = rest.prefix { $0 == "_" || $0.properties.isXIDContinue }
        guard let first = word.first, first == "_" || first.properties.isXIDStart else {
            throw failure("'\(rest.first.map(String.init) ?? "")' cannot stand in a tag")
        }
        add(.name, String(word))
        advance(to: i + String(word).utf8.count)
    }

    private mutating func number() throws(MartletError) {
        var end = i
        func isDigit(_ k: Int) -> Bool { k < bytes.count && bytes[k] >= 0x30 && bytes[k] <= 0x39 }
        func digits(_ from: Int) -> Int {
            var k = from
            while isDigit(k) || (k < bytes.count && bytes[k] == UInt8(ascii: "_") && isDigit(k + 1) && k > from) {
                k += 1
            }
            return k
        }
        if bytes[i] == 0x30, i + 1 < bytes.count, [0x78, 0x6F, 0x62].contains(bytes[i + 1] | 0x20) {
            end = i + 2
            while end < bytes.count,
                bytes[end] == UInt8(ascii: "_") || Unicode.Scalar(bytes[end]).properties.isASCIIHexDigit
            {
                end += 1
            }
            add(.integer, text(i..<end))
            return advance(to: end)
        }
        end = digits(i)
        var isFloat = false
        let afterDot = i > 0 && bytes[i - 1] == UInt8(ascii: ".")
        if !afterDot {
            if end < bytes.count, bytes[end] == UInt8(ascii: "."), isDigit(end + 1) {
                isFloat = true
                end = digits(end + 1)
            }
            if end < bytes.count, bytes[end] | 0x20 == UInt8(ascii: "e") {
                let signed =
                    end + 1 < bytes.count
                    && (bytes[end + 1] == UInt8(ascii: "+") || bytes[end + 1] == UInt8(ascii: "-"))
                let power = end + (signed ? 2 : 1)
                if isDigit(power) {
                    isFloat = true
                    end = digits(power)
                }
            }
        }
        add(isFloat ? .float : .integer, text(i..<end))
        advance(to: end)
    }

    private mutating func symbol(_ open: inout [UInt8]) throws(MartletError) {
        let pairs: [StaticString] = ["//", "**", "==", "!=", ">=", "<="]
        if let pair = pairs.first(where: { at($0, i) }) {
            add(.symbol, "\(pair)")
            return advance(to: i + 2)
        }
        let byte = bytes[i]
        switch byte {
        case UInt8(ascii: "("): open.append(UInt8(ascii: ")"))
        case UInt8(ascii: "["): open.append(UInt8(ascii: "]"))
        case UInt8(ascii: "{"): open.append(UInt8(ascii: "}"))
        case UInt8(ascii: ")"), UInt8(ascii: "]"), UInt8(ascii: "}"):
            guard open.popLast() == byte else { throw failure("unexpected '\(Unicode.Scalar(byte))'") }
        default:
            guard "+-/*%~<>=.:|,;".utf8.contains(byte) else {
                throw failure("'\(Unicode.Scalar(byte))' cannot stand in a tag")
            }
        }
        add(.symbol, String(Unicode.Scalar(byte)))
        advance(to: i + 1)
    }

    // MARK: strings

    private mutating func string() throws(MartletError) {
        let quote = bytes[i]
        var end = i + 1
        while end < bytes.count, bytes[end] != quote { end += bytes[end] == UInt8(ascii: "\\") ? 2 : 1 }
        guard end < bytes.count else { throw failure("a string is not closed") }
        let body = bytes[(i + 1)..<end]
        add(
            .string,
            body.contains(UInt8(ascii: "\\")) ? try unescaped(Array(body)) : String(decoding: body, as: UTF8.self))
        advance(to: end + 1)
    }

    /// Python's escapes; an unknown one stands for itself.
    private func unescaped(_ body: [UInt8]) throws(MartletError) -> String {
        let simple: [UInt8: UInt8] = [
            UInt8(ascii: "n"): 0x0A, UInt8(ascii: "t"): 0x09, UInt8(ascii: "r"): 0x0D, UInt8(ascii: "a"): 0x07,
            UInt8(ascii: "b"): 0x08, UInt8(ascii: "f"): 0x0C, UInt8(ascii: "v"): 0x0B, UInt8(ascii: "\\"): 0x5C,
            UInt8(ascii: "'"): 0x27, UInt8(ascii: "\""): 0x22,
        ]
        var out: [UInt8] = []
        var k = 0
        while k < body.count {
            guard body[k] == UInt8(ascii: "\\"), k + 1 < body.count else {
                out.append(body[k])
                k += 1
                continue
            }
            let letter = body[k + 1]
            k += 2
            if let byte = simple[letter] {
                out.append(byte)
            } else if letter == 0x0A {
                continue
            } else if let width = [UInt8(ascii: "x"): 2, UInt8(ascii: "u"): 4, UInt8(ascii: "U"): 8][letter] {
                var code = try hex(body, k, width)
                k += width
                if code >> 10 == 0x36, k + 6 <= body.count, body[k] == 0x5C, body[k + 1] == UInt8(ascii: "u") {
                    let low = try hex(body, k + 2, 4)
                    if low >> 10 == 0x37 {
                        code = 0x10000 + (code & 0x3FF) << 10 + (low & 0x3FF)
                        k += 6
                    }
                }
                guard let scalar = Unicode.Scalar(code) else { throw failure("an escape is not a Unicode character") }
                out.append(contentsOf: String(scalar).utf8)
            } else if letter >= 0x30, letter <= 0x37 {
                var code = UInt32(letter - 0x30), count = 1
                while count < 3, k < body.count, body[k] >= 0x30, body[k] <= 0x37 {
                    code = code * 8 + UInt32(body[k] - 0x30)
                    (k, count) = (k + 1, count + 1)
                }
                out.append(contentsOf: String(Unicode.Scalar(code) ?? "\u{FFFD}").utf8)
            } else {
                out.append(0x5C)
                out.append(letter)
            }
        }
        return String(decoding: out, as: UTF8.self)
    }

    private func hex(_ body: [UInt8], _ start: Int, _ width: Int) throws(MartletError) -> UInt32 {
        guard start + width <= body.count,
            body[start..<start + width].allSatisfy({ Unicode.Scalar($0).properties.isASCIIHexDigit }),
            let code = UInt32(String(decoding: body[start..<start + width], as: UTF8.self), radix: 16)
        else { throw failure("an escape needs \(width) hexadecimal digits") }
        return code
    }
}

/// An error in the template's own text.
func templateSyntaxError(_ reason: String, name: String, line: Int) -> MartletError {
    MartletError(
        "the chat template cannot be read", in: "\(name), line \(line)", because: reason,
        fix: "correct the template there (it is Jinja2), or take the one published with the model"
    )
}
