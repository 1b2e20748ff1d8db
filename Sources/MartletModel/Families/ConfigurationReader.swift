package import MartletCore

/// Reads the keys of a config.json; every wrong value is an error that names the key, the value and what is supported.
package struct ConfigurationReader {
    private let object: JSONObject

    package init(_ json: JSON) throws(MartletError) {
        guard let object = json.object else {
            throw MartletError(
                "config.json is not a configuration", because: "it holds \(json.kind), not an object",
                fix: "download the model's config.json again")
        }
        self.object = object
    }

    /// The value of a key, or of its other spelling; null counts as absent.
    package func value(_ key: String, or other: String? = nil) -> JSON? {
        if let value = object[key], !value.isNull { return value }
        if let other, let value = object[other], !value.isNull { return value }
        return nil
    }

    /// A whole number inside `range`; `default` nil makes the key required.
    package func integer(
        _ key: String, or other: String? = nil, in range: ClosedRange<Int>, default fallback: Int? = nil
    ) throws(MartletError) -> Int {
        guard let value = value(key, or: other) else {
            guard let fallback else { throw missing(key) }
            return fallback
        }
        guard let integer = value.integer, range.contains(integer) else {
            throw wrong(key, value, "a whole number from \(range.lowerBound) to \(range.upperBound)")
        }
        return integer
    }

    /// A finite number inside `range`.
    package func number(
        _ key: String, in range: ClosedRange<Double>, default fallback: Double
    ) throws(MartletError) -> Double {
        guard let value = value(key) else { return fallback }
        guard let number = value.number, range.contains(number) else {
            throw wrong(key, value, "a number from \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    package func flag(_ key: String, default fallback: Bool) throws(MartletError) -> Bool {
        guard let value = value(key) else { return fallback }
        guard let flag = value.bool else { throw wrong(key, value, "true or false") }
        return flag
    }

    /// Whole numbers inside `range`; a single number counts as a list of one where `allowsOne`.
    package func integers(
        _ key: String, in range: ClosedRange<Int>, allowsOne: Bool = false
    ) throws(MartletError) -> [Int] {
        guard let value = value(key) else { return [] }
        if allowsOne, let one = value.integer, range.contains(one) { return [one] }
        guard let array = value.array else { throw wrong(key, value, "a list of whole numbers") }
        var integers: [Int] = []
        for item in array {
            guard let integer = item.integer, range.contains(integer) else {
                throw wrong(key, value, "a list of whole numbers from \(range.lowerBound) to \(range.upperBound)")
            }
            integers.append(integer)
        }
        return integers
    }

    /// Refuses a key that stands there with anything but one of `supported`; null and absent are fine.
    package func require(_ key: String, isOneOf supported: JSON...) throws(MartletError) {
        guard let value = value(key),
            !supported.contains(where: { $0 == value || ($0.number != nil && $0.number == value.number) })
        else { return }
        throw unsupported(
            key, value, "supported: \(supported.map { $0.text() }.joined(separator: ", ")) or no such key")
    }

    /// The base of the rotary embedding, from either spelling; any scaling of it is refused.
    package func ropeTheta(default fallback: Double) throws(MartletError) -> Double {
        var theta = try number("rope_theta", in: 1...1e12, default: fallback)
        for key in ["rope_scaling", "rope_parameters"] {
            guard let value = value(key) else { continue }
            guard let rope = value.object else { throw wrong(key, value, "null or an object") }
            if let type = rope["rope_type"] ?? rope["type"], !type.isNull, type != "default" {
                throw unsupported("\(key).rope_type", type, "supported: \"default\"")
            }
            if let factor = rope["partial_rotary_factor"], !factor.isNull, factor.number != 1 {
                throw unsupported("\(key).partial_rotary_factor", factor, "supported: 1")
            }
            if let factor = rope["factor"], !factor.isNull, factor.number != 1 {
                throw unsupported("\(key).factor", factor, "supported: 1, no scaling")
            }
            if let value = rope["rope_theta"], !value.isNull {
                guard let number = value.number, (1...1e12).contains(number) else {
                    throw wrong("\(key).rope_theta", value, "a number from 1 to 1e12")
                }
                theta = number
            }
        }
        try require("partial_rotary_factor", isOneOf: 1)
        return theta
    }

    // MARK: Errors

    package func wrong(_ key: String, _ value: JSON, _ wanted: String) -> MartletError {
        MartletError(
            "config.json has a wrong value", in: "key \"\(key)\"",
            because: "it is \(short(value)); it must be \(wanted)",
            fix: "correct it, or download the model's config.json again")
    }

    package func unsupported(_ key: String, _ value: JSON, _ supported: String) -> MartletError {
        MartletError(
            "config.json asks for something that is not supported yet", in: "key \"\(key)\"",
            because: "it is \(short(value)); \(supported)", fix: "choose a model without it")
    }

    private func missing(_ key: String) -> MartletError {
        let guess = closestMatch(to: key, among: object.keys)
        return MartletError(
            "config.json lacks a key", in: "key \"\(key)\"",
            because: guess.map { "it is required; there is \"\($0)\"" } ?? "it is required for this model_type",
            fix: guess.map { "rename \"\($0)\" to \"\(key)\"" } ?? "download the model's config.json again")
    }

    private func short(_ value: JSON) -> String {
        let text = value.text()
        return text.count > 60 ? "\(text.prefix(57))..." : text
    }
}
