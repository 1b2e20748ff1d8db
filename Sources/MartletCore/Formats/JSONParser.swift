extension JSON {
    /// Parses one JSON document (RFC 8259). Nesting is limited to 256 levels, so no input can exhaust the stack.
    package init(parsing text: String) throws(MartletError) {
        var text = text
        text.makeContiguousUTF8()
        var outcome: Result<JSON, MartletError> = .success(.null)
        text.utf8.withContiguousStorageIfAvailable { bytes in
            outcome = Result { () throws(MartletError) in try JSON(parsing: UnsafeRawBufferPointer(bytes)) }
        }
        self = try outcome.get()
    }

    /// `rejectsRepeatedKeys` is for formats in which a key named twice is an attack or a fault, never a habit.
    package init(parsing bytes: UnsafeRawBufferPointer, rejectsRepeatedKeys: Bool = false) throws(MartletError) {
        var parser = JSONParser(bytes: bytes, rejectsRepeatedKeys: rejectsRepeatedKeys)
        self = try parser.document()
    }
}

private struct JSONParser {
    let bytes: UnsafeRawBufferPointer
    let rejectsRepeatedKeys: Bool
    var i = 0

    init(bytes: UnsafeRawBufferPointer, rejectsRepeatedKeys: Bool) {
        self.bytes = bytes
        self.rejectsRepeatedKeys = rejectsRepeatedKeys
    }

    mutating func document() throws(MartletError) -> JSON {
        if bytes.count >= 3, bytes[0] == 0xEF, bytes[1] == 0xBB, bytes[2] == 0xBF { i = 3 }
        let value = try value(depth: 0)
        skipSpace()
        guard i == bytes.count else { throw failure("there is more text after the value") }
        return value
    }

    func failure(_ reason: String) -> MartletError {
        var line = 1, column = 1
        for byte in bytes[..<min(i, bytes.count)] {
            if byte == 0x0A { (line, column) = (line + 1, 1) } else { column += 1 }
        }
        return MartletError(
            "not valid JSON", in: "line \(line), column \(column)", because: reason,
            fix: "correct the file there; `python3 -m json.tool FILE` shows the same place")
    }

    mutating func skipSpace() {
        while i < bytes.count, bytes[i] == 0x20 || bytes[i] == 0x0A || bytes[i] == 0x0D || bytes[i] == 0x09 { i += 1 }
    }

    mutating func value(depth: Int) throws(MartletError) -> JSON {
        guard depth < 256 else { throw failure("values are nested more than 256 levels deep") }
        skipSpace()
        guard i < bytes.count else { throw failure("the text ends where a value should stand") }
        switch bytes[i] {
        case UInt8(ascii: "{"): return try object(depth: depth)
        case UInt8(ascii: "["): return try array(depth: depth)
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"): return try number()
        default: throw failure("a value cannot start with '\(UnicodeScalar(bytes[i]))'")
        }
    }

    mutating func word(_ word: StaticString, _ value: JSON) throws(MartletError) -> JSON {
        for k in 0..<word.utf8CodeUnitCount {
            guard i + k < bytes.count, bytes[i + k] == word.utf8Start[k] else { throw failure("expected '\(word)'") }
        }
        i += word.utf8CodeUnitCount
        return value
    }

    mutating func object(depth: Int) throws(MartletError) -> JSON {
        var object = JSONObject()
        i += 1
        skipSpace()
        if i < bytes.count, bytes[i] == UInt8(ascii: "}") { i += 1; return .object(object) }
        while true {
            skipSpace()
            guard i < bytes.count, bytes[i] == UInt8(ascii: "\"") else { throw failure("expected a key in quotes") }
            let key = try string()
            if rejectsRepeatedKeys, object[key] != nil { throw failure("the key '\(key)' stands there twice") }
            skipSpace()
            guard i < bytes.count, bytes[i] == UInt8(ascii: ":") else { throw failure("expected ':' after a key") }
            i += 1
            object[key] = try value(depth: depth + 1)
            if try !separator(closing: UInt8(ascii: "}")) { return .object(object) }
        }
    }

    mutating func array(depth: Int) throws(MartletError) -> JSON {
        var array: [JSON] = []
        i += 1
        skipSpace()
        if i < bytes.count, bytes[i] == UInt8(ascii: "]") { i += 1; return .array(array) }
        while true {
            array.append(try value(depth: depth + 1))
            if try !separator(closing: UInt8(ascii: "]")) { return .array(array) }
        }
    }

    /// Steps over ',' (true) or the closing bracket (false).
    mutating func separator(closing: UInt8) throws(MartletError) -> Bool {
        skipSpace()
        guard i < bytes.count else { throw failure("the text ends inside a list or object") }
        defer { i += 1 }
        if bytes[i] == UInt8(ascii: ",") { return true }
        guard bytes[i] == closing else { throw failure("expected ',' or '\(UnicodeScalar(closing))'") }
        return false
    }

    mutating func number() throws(MartletError) -> JSON {
        let start = i
        var isInteger = true
        if bytes[i] == UInt8(ascii: "-") { i += 1 }
        let leadingZero = i < bytes.count && bytes[i] == UInt8(ascii: "0")
        let digits = skipDigits()
        guard digits > 0, !(leadingZero && digits > 1) else { throw failure("a number is malformed") }
        if i < bytes.count, bytes[i] == UInt8(ascii: ".") {
            isInteger = false
            i += 1
            guard skipDigits() > 0 else { throw failure("a number is malformed") }
        }
        if i < bytes.count, bytes[i] | 0x20 == UInt8(ascii: "e") {
            isInteger = false
            i += 1
            if i < bytes.count, bytes[i] == UInt8(ascii: "+") || bytes[i] == UInt8(ascii: "-") { i += 1 }
            guard skipDigits() > 0 else { throw failure("a number is malformed") }
        }
        let text = String(decoding: bytes[start..<i], as: UTF8.self)
        if isInteger, let integer = Int(text) { return .integer(integer) }
        guard let value = Double(text) else { throw failure("a number is malformed") }
        return .number(value)
    }

    mutating func skipDigits() -> Int {
        let start = i
        while i < bytes.count, bytes[i] >= UInt8(ascii: "0"), bytes[i] <= UInt8(ascii: "9") { i += 1 }
        return i - start
    }

    mutating func string() throws(MartletError) -> String {
        i += 1
        let start = i
        while i < bytes.count, bytes[i] != UInt8(ascii: "\""), bytes[i] != UInt8(ascii: "\\"), bytes[i] >= 0x20 {
            i += 1
        }
        guard i < bytes.count else { throw failure("a string is not closed") }
        if bytes[i] == UInt8(ascii: "\"") {
            defer { i += 1 }
            return try text(Array(bytes[start..<i]))
        }
        var out = Array(bytes[start..<i])
        while i < bytes.count {
            let byte = bytes[i]
            if byte == UInt8(ascii: "\"") {
                i += 1
                return try text(out)
            }
            guard byte >= 0x20 else { throw failure("a string holds a raw control character") }
            i += 1
            if byte != UInt8(ascii: "\\") { out.append(byte) } else { try escape(into: &out) }
        }
        throw failure("a string is not closed")
    }

    func text(_ bytes: [UInt8]) throws(MartletError) -> String {
        guard let text = String(validating: bytes, as: UTF8.self) else { throw failure("a string is not valid UTF-8") }
        return text
    }

    mutating func escape(into out: inout [UInt8]) throws(MartletError) {
        guard i < bytes.count else { throw failure("a string is not closed") }
        let byte = bytes[i]
        i += 1
        switch byte {
        case UInt8(ascii: "n"): out.append(0x0A)
        case UInt8(ascii: "t"): out.append(0x09)
        case UInt8(ascii: "r"): out.append(0x0D)
        case UInt8(ascii: "b"): out.append(0x08)
        case UInt8(ascii: "f"): out.append(0x0C)
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): out.append(byte)
        case UInt8(ascii: "u"):
            var code = UInt32(try hex4())
            if code >> 10 == 0x36, i + 1 < bytes.count, bytes[i] == UInt8(ascii: "\\"),
                bytes[i + 1] == UInt8(ascii: "u")
            {
                let rewind = i
                i += 2
                let low = UInt32(try hex4())
                if low >> 10 == 0x37 { code = 0x10000 + (code & 0x3FF) << 10 + (low & 0x3FF) } else { i = rewind }
            }
            out.append(contentsOf: String(UnicodeScalar(code) ?? "\u{FFFD}").utf8)
        default: throw failure("'\\\(UnicodeScalar(byte))' is not an escape")
        }
    }

    mutating func hex4() throws(MartletError) -> UInt16 {
        guard i + 4 <= bytes.count,
            bytes[i..<i + 4].allSatisfy({ UnicodeScalar($0).properties.isASCIIHexDigit }),
            let code = UInt16(String(decoding: bytes[i..<i + 4], as: UTF8.self), radix: 16)
        else { throw failure("'\\u' needs four hexadecimal digits") }
        i += 4
        return code
    }
}
