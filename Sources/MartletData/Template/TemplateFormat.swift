internal import MartletCore

/// How one value is laid out: what stands between `%` and its letter, or after the `:` of a brace.
private struct FormatSpec {
    var fill: Unicode.Scalar = " "
    /// `<`, `>`, `^` or `=`.
    var alignment: Unicode.Scalar?
    /// `+`, `-` or a space.
    var sign: Unicode.Scalar = "-"
    var isAlternate = false
    var grouping: Unicode.Scalar?
    var width = 0
    var precision: Int?
    var type: Unicode.Scalar?
}

// `'%s' % value` and `'{}'.format(value)`.
extension TemplateInterpreter {
    // MARK: percent

    func percentFormat(_ format: String, _ value: TemplateValue) throws(MartletError) -> String {
        var values: [TemplateValue] = [value]
        if case .tuple(let box) = value { values = box.items }
        var used = 0
        var out = ""
        var scalars = format.unicodeScalars[...]
        while let scalar = scalars.popFirst() {
            guard scalar == "%" else {
                out.unicodeScalars.append(scalar)
                continue
            }
            if scalars.first == "%" {
                scalars.removeFirst()
                out += "%"
                continue
            }
            let name = try mappingKey(&scalars)
            func next() throws(MartletError) -> TemplateValue {
                defer { used += 1 }
                guard used < values.count else {
                    throw failure("there are not enough values for the format \(pythonQuoted(format))")
                }
                return values[used]
            }
            let spec = try percentSpec(&scalars, next)
            guard spec.type != "%" else {
                out += "%"
                continue
            }
            var item = try name.map { n throws(MartletError) in try keyed(n, value) } ?? .none
            if name == nil { item = try next() } else { used = values.count }
            try charge(bytes: spec.width)
            out += try percentFormatted(item, spec)
            try charge(bytes: out.utf8.count)
        }
        switch value {
        case .dict, .list, .range, .undefined: return out
        default: break
        }
        guard used >= values.count else { throw failure("not all values fit the format \(pythonQuoted(format))") }
        return out
    }

    private func mappingKey(_ scalars: inout Substring.UnicodeScalarView) throws(MartletError) -> String? {
        guard scalars.first == "(" else { return nil }
        let key = scalars.dropFirst().prefix { $0 != ")" }
        guard key.endIndex < scalars.endIndex else { throw failure("a '%(' is not closed in a format") }
        scalars = scalars[scalars.index(after: key.endIndex)...]
        return String(key)
    }

    private func keyed(_ name: String, _ value: TemplateValue) throws(MartletError) -> TemplateValue {
        guard case .dict(let box) = value, let item = box[name] else {
            throw failure("the format needs the key '\(name)'")
        }
        return item
    }

    private func percentSpec(
        _ scalars: inout Substring.UnicodeScalarView, _ next: () throws(MartletError) -> TemplateValue
    ) throws(MartletError) -> FormatSpec {
        var spec = FormatSpec()
        flags: while let flag = scalars.first {
            switch flag {
            case "-": spec.alignment = "<"
            case "+": spec.sign = "+"
            case " ": if spec.sign != "+" { spec.sign = " " }
            case "#": spec.isAlternate = true
            case "0": spec.fill = "0"
            default: break flags
            }
            scalars.removeFirst()
        }
        if scalars.first == "*" {
            scalars.removeFirst()
            let width = try integer(try next(), "%") ?? 0
            if width < 0 { spec.alignment = "<" }
            spec.width = try bounded(Int(clamping: width.magnitude))
        } else {
            spec.width = try digits(&scalars) ?? 0
        }
        if scalars.first == "." {
            scalars.removeFirst()
            if scalars.first == "*" {
                scalars.removeFirst()
                spec.precision = try bounded(max(0, try integer(try next(), "%") ?? 0))
            } else {
                spec.precision = try digits(&scalars) ?? 0
            }
        }
        while let letter = scalars.first, letter == "l" || letter == "h" || letter == "L" { scalars.removeFirst() }
        guard let type = scalars.popFirst() else { throw failure("a format ends after '%'") }
        spec.type = type
        return spec
    }

    private func percentFormatted(_ item: TemplateValue, _ given: FormatSpec) throws(MartletError) -> String {
        var spec = given
        switch given.type {
        case "s", "r", "a":
            var text = given.type == "s" ? try text(item) : try repr(item)
            if let precision = spec.precision { text = String(text.unicodeScalars.prefix(precision)) }
            return padded(text, spec.width, spec.alignment == "<" ? -1 : 1)
        case "c":
            if case .string(let text) = item, text.scalarCount == 1 {
                return padded(text, spec.width, spec.alignment == "<" ? -1 : 1)
            }
            return padded(try character(item), spec.width, spec.alignment == "<" ? -1 : 1)
        case "d", "i", "u", "x", "X", "o":
            guard let number = item.asDouble, number.isFinite,
                given.type != "x" && given.type != "X" && given.type != "o" || item.index != nil
            else { throw failure("a format needs a number, not '\(item.typeName)'") }
            guard let integer = item.index ?? Int(exactly: number.rounded(.towardZero)) else {
                throw failure("a number is too large for a format")
            }
            if ["i", "u"].contains(given.type) { spec.type = "d" }
            if spec.alignment == "<" { spec.fill = " " }
            if let precision = spec.precision {
                let body = padded(
                    String(integer.magnitude, radix: radix(spec.type), uppercase: spec.type == "X"), precision, 1,
                    fill: "0")
                return aligned(signText(integer < 0, spec), body, spec)
            }
            return try formatted(integer, spec)
        case "e", "E", "f", "F", "g", "G":
            guard let number = item.asDouble else { throw failure("a format needs a number, not '\(item.typeName)'") }
            if spec.alignment == "<" { spec.fill = " " }
            return try formatted(number, spec)
        default: throw failure("'%\(given.type.map(String.init) ?? "")' is not a format")
        }
    }

    private func bounded(_ width: Int) throws(MartletError) -> Int {
        guard width <= 100_000 else { throw failure("a format is wider than 100000 characters") }
        return width
    }

    private func digits(_ scalars: inout Substring.UnicodeScalarView) throws(MartletError) -> Int? {
        let digits = scalars.prefix { $0.value >= 0x30 && $0.value <= 0x39 }
        guard !digits.isEmpty else { return nil }
        scalars = scalars[digits.endIndex...]
        return try bounded(Int(String(digits)) ?? .max)
    }

    // MARK: braces

    func braceFormat(_ format: String, _ arguments: CallValues) throws(MartletError) -> String {
        var out = ""
        var scalars = format.unicodeScalars[...]
        var automatic = 0
        while let scalar = scalars.popFirst() {
            switch scalar {
            case "{" where scalars.first == "{", "}" where scalars.first == "}":
                scalars.removeFirst()
                out.unicodeScalars.append(scalar)
            case "{": out += try field(&scalars, arguments, &automatic, level: 0)
            case "}": throw failure("a single '}' stands in a format")
            default: out.unicodeScalars.append(scalar)
            }
            try charge(bytes: out.utf8.count >> 4)
        }
        return out
    }

    /// `name.attribute[key]!conversion:spec}`.
    private func field(
        _ scalars: inout Substring.UnicodeScalarView, _ arguments: CallValues, _ automatic: inout Int, level: Int
    ) throws(MartletError) -> String {
        let name = scalars.prefix { $0 != "!" && $0 != ":" && $0 != "}" }
        scalars = scalars[name.endIndex...]
        var value = try lookUpField(String(name), arguments, &automatic)
        if scalars.first == "!" {
            scalars.removeFirst()
            guard let conversion = scalars.popFirst(), ["r", "s", "a"].contains(conversion) else {
                throw failure("a conversion in a format is unknown")
            }
            value = .string(conversion == "s" ? try text(value) : try repr(value))
        }
        var spec = ""
        if scalars.first == ":" {
            scalars.removeFirst()
            while let scalar = scalars.first, scalar != "}" {
                scalars.removeFirst()
                if scalar == "{" {
                    guard level == 0 else { throw failure("a format is nested too deeply") }
                    spec += try field(&scalars, arguments, &automatic, level: 1)
                } else {
                    spec.unicodeScalars.append(scalar)
                }
            }
        }
        guard scalars.popFirst() == "}" else { throw failure("a '{' is not closed in a format") }
        return try formatted(value, spec)
    }

    private func lookUpField(
        _ name: String, _ arguments: CallValues, _ automatic: inout Int
    ) throws(MartletError) -> TemplateValue {
        var rest = name.unicodeScalars[...]
        let head = String(rest.prefix { $0 != "." && $0 != "[" })
        rest = rest.dropFirst(head.unicodeScalars.count)
        var value: TemplateValue
        if head.isEmpty || head.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }) {
            let index = head.isEmpty ? automatic : Int(head) ?? .max
            if head.isEmpty { automatic += 1 }
            guard index < arguments.positional.count else {
                throw failure("a format names the value \(index), which was not given")
            }
            value = arguments.positional[index]
        } else {
            guard let found = arguments.named.last(where: { sameText($0.name, head) }) else {
                throw failure("a format names '\(head)', which was not given")
            }
            value = found.value
        }
        while let mark = rest.popFirst() {
            let isDot = mark == "."
            let part = String(rest.prefix { isDot ? $0 != "." && $0 != "[" : $0 != "]" })
            rest = rest.dropFirst(part.unicodeScalars.count + (isDot ? 0 : 1))
            value =
                isDot
                ? try attribute(AttributeName(part), of: value)
                : try item(Int(part).map { .int($0) } ?? .string(part), of: value)
        }
        return value
    }

    /// `value` laid out by Python's format mini-language.
    private func formatted(_ value: TemplateValue, _ text: String) throws(MartletError) -> String {
        if text.isEmpty { return try self.text(value) }
        let spec = try parsedSpec(text)
        try charge(bytes: spec.width)
        switch value {
        case .string(let string):
            guard spec.type == nil || spec.type == "s" else { throw failure("'\(text)' does not format a string") }
            let cut = spec.precision.map { String(string.unicodeScalars.prefix($0)) } ?? string
            return padded(
                cut, spec.width, spec.alignment == ">" ? 1 : spec.alignment == "^" ? 2 : -1, fill: String(spec.fill))
        case .int, .bool:
            let integer = value.index ?? 0
            if let type = spec.type, ["e", "E", "f", "F", "g", "G", "%"].contains(type) {
                return try formatted(Double(integer), spec)
            }
            if spec.type == "c" { return padded(try character(value), spec.width, -1, fill: String(spec.fill)) }
            guard spec.precision == nil else { throw failure("an integer has no precision in a format") }
            return try formatted(integer, spec)
        case .float(let number): return try formatted(number, spec)
        default: throw failure("'\(value.typeName)' cannot be formatted with '\(text)'")
        }
    }

    private func parsedSpec(_ text: String) throws(MartletError) -> FormatSpec {
        var spec = FormatSpec()
        var scalars = text.unicodeScalars[...]
        let aligns: [Unicode.Scalar] = ["<", ">", "^", "="]
        var hasFill = false
        if let second = scalars.dropFirst().first, aligns.contains(second), let fill = scalars.first {
            (spec.fill, spec.alignment, hasFill) = (fill, second, true)
            scalars = scalars.dropFirst(2)
        } else if let first = scalars.first, aligns.contains(first) {
            spec.alignment = first
            scalars.removeFirst()
        }
        if let sign = scalars.first, ["+", "-", " "].contains(sign) { (spec.sign, _) = (sign, scalars.removeFirst()) }
        if scalars.first == "#" { (spec.isAlternate, _) = (true, scalars.removeFirst()) }
        if scalars.first == "0" {
            if !hasFill { spec.fill = "0" }
            if spec.alignment == nil { spec.alignment = "=" }
            scalars.removeFirst()
        }
        spec.width = try digits(&scalars) ?? 0
        if let mark = scalars.first, mark == "," || mark == "_" { (spec.grouping, _) = (mark, scalars.removeFirst()) }
        if scalars.first == "." {
            scalars.removeFirst()
            guard let precision = try digits(&scalars) else { throw failure("a format lacks its precision") }
            spec.precision = precision
        }
        spec.type = scalars.popFirst()
        guard scalars.isEmpty else { throw failure("'\(text)' is not a format") }
        return spec
    }

    // MARK: numbers

    private func radix(_ type: Unicode.Scalar?) -> Int {
        type == "x" || type == "X" ? 16 : type == "o" ? 8 : type == "b" ? 2 : 10
    }

    private func signText(_ isNegative: Bool, _ spec: FormatSpec) -> String {
        isNegative ? "-" : spec.sign == "-" ? "" : String(spec.sign)
    }

    private func formatted(_ number: Int, _ spec: FormatSpec) throws(MartletError) -> String {
        guard [nil, "d", "n", "x", "X", "o", "b"].contains(spec.type) else {
            throw failure("'\(spec.type.map(String.init) ?? "")' does not format an integer")
        }
        let body = String(number.magnitude, radix: radix(spec.type), uppercase: spec.type == "X")
        let prefix = spec.isAlternate && radix(spec.type) != 10 ? "0" + String(spec.type ?? "x") : ""
        return aligned(signText(number < 0, spec) + prefix, grouped(body, spec, radix(spec.type) == 10 ? 3 : 4), spec)
    }

    private func formatted(_ number: Double, _ spec: FormatSpec) throws(MartletError) -> String {
        let type = spec.type ?? "r"
        guard ["r", "e", "E", "f", "F", "g", "G", "n", "%"].contains(type) else {
            throw failure("'\(type)' does not format a number")
        }
        var body: String
        if !number.isFinite {
            body = number.isNaN ? "nan" : "inf"
        } else if type == "r" && spec.precision == nil {
            body = pythonFloat(number.magnitude)
        } else {
            let letter: Character =
                type == "e" || type == "E" ? "e" : type == "f" || type == "F" || type == "%" ? "f" : "g"
            let scaled = type == "%" ? number.magnitude * 100 : number.magnitude
            body = formatted(
                scaled, letter, letter == "g" ? max(1, spec.precision ?? 6) : spec.precision ?? 6,
                alternate: spec.isAlternate)
            if type == "r", !body.utf8.contains(UInt8(ascii: ".")), !body.utf8.contains(UInt8(ascii: "e")) {
                body += ".0"
            }
        }
        if type == "E" || type == "G" || type == "F" { body = body.uppercased() }
        let whole = body.unicodeScalars.prefix { $0.value >= 0x30 && $0.value <= 0x39 }
        body =
            grouped(String(whole), spec, 3) + String(body.unicodeScalars[whole.endIndex...]) + (type == "%" ? "%" : "")
        return aligned(signText(number.sign == .minus && !number.isNaN, spec), body, spec)
    }

    private func grouped(_ digits: String, _ spec: FormatSpec, _ size: Int) -> String {
        guard let mark = spec.grouping else { return digits }
        var out: [UInt8] = []
        for (i, byte) in digits.utf8.enumerated() {
            if i > 0, (digits.utf8.count - i) % size == 0 { out.append(UInt8(truncatingIfNeeded: mark.value)) }
            out.append(byte)
        }
        return String(decoding: out, as: UTF8.self)
    }

    /// Sign and digits in the width: numbers stand right unless the spec says otherwise.
    private func aligned(_ sign: String, _ body: String, _ spec: FormatSpec) -> String {
        let fill = String(spec.fill)
        if spec.alignment == "=" || (spec.alignment == nil && spec.fill == "0") {
            return sign + padded(body, spec.width - sign.scalarCount, 1, fill: fill)
        }
        return padded(sign + body, spec.width, spec.alignment == "<" ? -1 : spec.alignment == "^" ? 2 : 1, fill: fill)
    }

    private func character(_ value: TemplateValue) throws(MartletError) -> String {
        guard let code = value.index, let scalar = UInt32(exactly: code).flatMap(Unicode.Scalar.init) else {
            throw failure("'\(value.typeName)' does not name a character")
        }
        return String(scalar)
    }
}
