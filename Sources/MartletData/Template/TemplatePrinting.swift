internal import MartletCore

// Python's `str` and `repr` of values.

extension TemplateInterpreter {
    /// The value as `{{ value }}` prints it.
    func text(_ value: TemplateValue) throws(MartletError) -> String {
        switch value {
        case .string(let text): return text
        case .undefined: return ""
        case .int(let number): return String(number)
        default:
            var out = ""
            try printRepr(value, to: &out, level: 0)
            return out
        }
    }

    /// The value as Python's `repr` prints it.
    func repr(_ value: TemplateValue) throws(MartletError) -> String {
        var out = ""
        try printRepr(value, to: &out, level: 0)
        return out
    }

    private func printRepr(_ value: TemplateValue, to out: inout String, level: Int) throws(MartletError) {
        try charge(1)
        guard level < limits.valueDepth + 8 else { throw failure("a value is nested too deeply to be printed") }
        switch value {
        case .undefined: out += "Undefined"
        case .none: out += "None"
        case .bool(let value): out += value ? "True" : "False"
        case .int(let value): out += String(value)
        case .float(let value): out += pythonFloat(value)
        case .string(let value):
            try charge(bytes: value.utf8.count)
            out += pythonQuoted(value)
        case .list(let box): try printItems("[", box.items, "]", to: &out, level)
        case .tuple(let box): try printItems("(", box.items, box.items.count == 1 ? ",)" : ")", to: &out, level)
        case .dict(let box): try printEntries(box, to: &out, level)
        case .view(let view):
            out += "dict_\(view.kind.rawValue)("
            try printItems("[", view.items, "])", to: &out, level)
        case .range(let range):
            out += "range(\(range.start), \(range.stop)" + (range.step == 1 ? ")" : ", \(range.step))")
        case .namespace(let box):
            out += "<Namespace {"
            for (i, attribute) in box.attributes.enumerated() {
                out += (i > 0 ? ", " : "") + pythonQuoted(attribute.name) + ": "
                try printRepr(attribute.value, to: &out, level: level + 1)
            }
            out += "}>"
        case .loop(let loop): out += "<LoopContext \(loop.index + 1)/\(loop.count)>"
        case .iterator(let box): out += "<\(box.typeName) object>"
        case .callable: out += "<function>"
        }
    }

    private func printItems(
        _ open: String, _ items: [TemplateValue], _ close: String, to out: inout String, _ level: Int
    ) throws(MartletError) {
        out += open
        for (i, item) in items.enumerated() {
            if i > 0 { out += ", " }
            try printRepr(item, to: &out, level: level + 1)
        }
        out += close
    }

    private func printEntries(_ box: DictBox, to out: inout String, _ level: Int) throws(MartletError) {
        out += "{"
        for (i, entry) in box.entries.enumerated() {
            if i > 0 { out += ", " }
            try printRepr(entry.key, to: &out, level: level + 1)
            out += ": "
            try printRepr(entry.value, to: &out, level: level + 1)
        }
        out += "}"
    }
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
func pythonFloat(_ value: Double) -> String {
    if value.isNaN { return "nan" }
    if value.isInfinite { return value < 0 ? "-inf" : "inf" }
    if value == 0 { return value.sign == .minus ? "-0.0" : "0.0" }
    let (digits, exponent) = shortestDigits(value.magnitude)
    let sign = value < 0 ? "-" : ""
    if exponent < -4 || exponent >= 16 {
        let head = String(decoding: digits.prefix(1), as: UTF8.self)
        let tail = digits.count > 1 ? "." + String(decoding: digits.dropFirst(), as: UTF8.self) : ""
        let power = String(exponent.magnitude)
        return sign + head + tail + (exponent < 0 ? "e-" : "e+") + (power.utf8.count < 2 ? "0" : "") + power
    }
    if exponent < 0 {
        return sign + "0." + String(repeating: "0", count: -exponent - 1) + String(decoding: digits, as: UTF8.self)
    }
    let whole = digits.prefix(exponent + 1)
    let padding = String(repeating: "0", count: max(0, exponent + 1 - digits.count))
    let fraction = digits.dropFirst(exponent + 1)
    return sign + String(decoding: whole, as: UTF8.self) + padding + "."
        + (fraction.isEmpty ? "0" : String(decoding: fraction, as: UTF8.self))
}

/// The shortest decimal digits of a positive finite number, and the power of ten of the first one.
private func shortestDigits(_ value: Double) -> (digits: [UInt8], exponent: Int) {
    let text = value.description
    let halves = text.split(separator: "e")
    let power = halves.count > 1 ? Int(halves[1]) ?? 0 : 0
    let mantissa = halves[0].split(separator: ".", omittingEmptySubsequences: false)
    let whole = Array(mantissa[0].utf8)
    var digits = whole + (mantissa.count > 1 ? Array(mantissa[1].utf8) : [])
    var exponent = power + whole.count - 1
    while digits.count > 1, digits[0] == UInt8(ascii: "0") {
        digits.removeFirst()
        exponent -= 1
    }
    while digits.count > 1, digits.last == UInt8(ascii: "0") { digits.removeLast() }
    return (digits, exponent)
}

/// Python's `repr` of a string.
func pythonQuoted(_ text: String) -> String {
    let quote: Unicode.Scalar =
        text.utf8.contains(UInt8(ascii: "'")) && !text.utf8.contains(UInt8(ascii: "\"")) ? "\"" : "'"
    var out = String(quote)
    for scalar in text.unicodeScalars {
        switch scalar {
        case "\\": out += "\\\\"
        case "\n": out += "\\n"
        case "\r": out += "\\r"
        case "\t": out += "\\t"
        case quote: out += "\\" + String(quote)
        case _ where scalar.isPrintable: out.unicodeScalars.append(scalar)
        default:
            let code = scalar.value
            let (letter, width) = code < 0x100 ? ("x", 2) : code < 0x10000 ? ("u", 4) : ("U", 8)
            let hex = String(code, radix: 16)
            out += "\\" + letter + String(repeating: "0", count: width - hex.utf8.count) + hex
        }
    }
    out.unicodeScalars.append(quote)
    return out
}
