internal import MartletCore

#if canImport(Glibc)
internal import Glibc
#elseif canImport(Darwin)
internal import Darwin
#endif

// Filters that calculate.
extension TemplateInterpreter {
    func applyNumeric(
        _ filter: TemplateFilter, _ value: TemplateValue, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        switch filter {
        case .abs:
            if case .float(let number) = value { return .float(number.magnitude) }
            guard let number = value.index, number > .min else {
                throw failure("'abs' needs a number, not '\(value.typeName)'")
            }
            return .int(Swift.abs(number))
        case .int: return try integerFilter(value, arguments)
        case .float:
            let preset = try bind(arguments, to: "float", ["default"])[0] ?? .float(0)
            if let number = value.asDouble { return .float(number) }
            if case .string(let text) = value { return parsedFloat(text).map { .float($0) } ?? preset }
            if case .undefined(let name) = value { throw undefined(name) }
            return preset
        case .round: return try rounded(value, arguments)
        case .sum:
            let given = try bind(arguments, to: "sum", ["attribute", "start"])
            var total = given[1] ?? .int(0)
            if case .string = total { throw failure("'sum' cannot add strings", fix: "use 'join'") }
            for item in try items(of: value) {
                total = try calculate(.add, total, try find(given[0] ?? .none, in: item))
            }
            return total
        default: return try extreme(filter, value, arguments)
        }
    }

    private func extreme(
        _ filter: TemplateFilter, _ value: TemplateValue, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: filter.rawValue, ["case_sensitive", "attribute"])
        var best: (key: TemplateValue, item: TemplateValue)?
        for item in try items(of: value) {
            var key = try find(given[1] ?? .none, in: item)
            if !(given[0]?.isTrue ?? false) { key = foldingCase(key) }
            guard let current = best else {
                best = (key, item)
                continue
            }
            if filter == .min ? try isLess(key, current.key) : try isLess(current.key, key) { best = (key, item) }
        }
        return best?.item ?? .undefined("the \(filter.rawValue) of an empty sequence")
    }

    // MARK: conversion

    private func integerFilter(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: "int", ["default", "base"])
        let preset = given[0] ?? .int(0)
        switch value {
        case .int, .bool: return .int(value.index ?? 0)
        case .float(let number):
            if number.isNaN { return preset }
            guard let integer = Int(exactly: number.rounded(.towardZero)) else {
                throw failure("'int' cannot hold \(pythonFloat(number))")
            }
            return .int(integer)
        case .string(let text):
            if let integer = parsedInteger(text, radix: try integer(given[1], "int") ?? 10) { return .int(integer) }
            guard let number = parsedFloat(text), number.isFinite else { return preset }
            return Int(exactly: number.rounded(.towardZero)).map { .int($0) } ?? preset
        case .undefined(let name): throw undefined(name)
        default: return preset
        }
    }

    /// Python's `int(text, radix)`: spaces around, a sign, underscores between digits, and the radix' prefix.
    private func parsedInteger(_ text: String, radix: Int) -> Int? {
        var digits = text.stripped().lowercased()
        let sign = digits.hasText(prefix: "-") ? "-" : ""
        if digits.hasText(prefix: "-") || digits.hasText(prefix: "+") { digits = digits.part(1..<digits.utf8.count) }
        let prefixes = [16: "0x", 8: "0o", 2: "0b"]
        var radix = radix
        if radix == 0 { radix = prefixes.first { digits.hasText(prefix: $0.value) }?.key ?? 10 }
        guard (2...36).contains(radix) else { return nil }
        if let prefix = prefixes[radix], digits.hasText(prefix: prefix) { digits = digits.part(2..<digits.utf8.count) }
        guard let plain = withoutUnderscores(digits), plain.utf8.first != UInt8(ascii: "+"),
            plain.utf8.first != UInt8(ascii: "-")
        else { return nil }
        return Int(sign + plain, radix: radix)
    }

    /// Python's `float(text)`.
    private func parsedFloat(_ text: String) -> Double? {
        let trimmed = text.stripped().lowercased()
        let unsigned = trimmed.stripped("+-", trailing: false)
        if ["inf", "infinity", "nan"].contains(unsigned) { return Double(trimmed) }
        guard let plain = withoutUnderscores(trimmed), !plain.utf8.contains(UInt8(ascii: "x")),
            plain.utf8.allSatisfy({ "0123456789.e+-".utf8.contains($0) })
        else { return nil }
        return Double(plain)
    }

    /// The text without underscores, if each stands between two digits.
    private func withoutUnderscores(_ text: String) -> String? {
        guard text.utf8.contains(UInt8(ascii: "_")) else { return text }
        let parts = text.pieces(around: "_")
        let isFine = parts.allSatisfy { part in
            !part.isEmpty
                && part.utf8.allSatisfy { Unicode.Scalar($0).properties.isASCIIHexDigit || $0 == UInt8(ascii: ".") }
        }
        return isFine ? parts.joined() : nil
    }

    // MARK: rounding

    private func rounded(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: "round", ["precision", "method"])
        let precision = try integer(given[0], "round") ?? 0
        let method = try string(given[1], "round") ?? "common"
        guard ["common", "ceil", "floor"].contains(method) else {
            throw failure("'round' knows common, ceil and floor")
        }
        guard precision.magnitude <= 300 else { throw failure("'round' cannot keep \(precision) digits") }
        if case .undefined(let name) = value { throw undefined(name) }
        guard let number = value.asDouble else { throw failure("'round' needs a number, not '\(value.typeName)'") }
        if method != "common" {
            let scale = pow(10, Double(precision))
            let scaled = (number * scale).rounded(method == "ceil" ? .up : .down)
            guard scaled.isFinite else { throw failure("'round' needs a finite number") }
            return .float(scaled / scale)
        }
        if let integer = value.index {
            return precision >= 0 ? .int(integer) : .int(try roundedTens(integer, precision))
        }
        guard number.isFinite else { return value }
        if precision < 0 {
            let scale = pow(10, Double(-precision))
            return .float((number / scale).rounded(.toNearestOrEven) * scale)
        }
        return .float(Double(formatted(number, "f", precision)) ?? number)
    }

    private func roundedTens(_ value: Int, _ precision: Int) throws(MartletError) -> Int {
        guard precision > -18 else { return 0 }
        let unit = (0..<(-precision)).reduce(1) { unit, _ in unit * 10 }
        let (quotient, rest) = value.quotientAndRemainder(dividingBy: unit)
        let twice = rest.magnitude * 2
        let away = twice > UInt(unit) || (twice == UInt(unit) && quotient % 2 != 0)
        let result = (away ? quotient + value.signum() : quotient).multipliedReportingOverflow(by: unit)
        guard !result.overflow else { throw failure("'round' gives an integer beyond 64 bits") }
        return result.partialValue
    }

    /// A number as C prints it with `%.<precision><conversion>`; the conversion is one of e, f and g.
    func formatted(_ number: Double, _ conversion: Character, _ precision: Int, alternate: Bool = false) -> String {
        let format = "%\(alternate ? "#" : "").*\(conversion)"
        var buffer = [CChar](repeating: 0, count: 400 + precision)
        let count = withVaList([CInt(clamping: precision), number]) { vsnprintf(&buffer, buffer.count, format, $0) }
        let length = min(max(0, Int(count)), buffer.count - 1)
        return String(decoding: buffer[..<length].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
