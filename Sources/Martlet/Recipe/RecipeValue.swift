internal import MartletCore

/// A value as the user wrote it, before it has a type: YAML decides nothing, the key's row of the table does.
/// So `1e-4` is a number where a number is wanted (YAML 1.1 says string), and `no` is never silently `false`.
enum RecipeValue {
    case null
    case scalar(String)
    case list([RecipeValue])
    case map([Member])

    /// A key, the line it stands in, and what it is given.
    struct Member {
        var key: String
        var line: Int
        var value: RecipeValue
    }

    var kind: String {
        switch self {
        case .null: "nothing"
        case .scalar(let text): "'\(text)'"
        case .list: "a list"
        case .map: "a mapping"
        }
    }
}

/// Why a value does not suit its key; the parser adds the key and the place.
struct RecipeValueError: Error {
    var wanted: String
    var remedy: String?
}

extension RecipeValue {
    private func text(_ wanted: String) throws(RecipeValueError) -> String {
        guard case .scalar(let text) = self else { throw RecipeValueError(wanted: wanted) }
        return text
    }

    func string(_ wanted: String) throws(RecipeValueError) -> String {
        let text = try text(wanted)
        guard !text.isEmpty else { throw RecipeValueError(wanted: wanted) }
        return text
    }

    func integer(in range: ClosedRange<Int>) throws(RecipeValueError) -> Int {
        let wanted =
            "a whole number" + RecipeValue.bounds(range.lowerBound, range.upperBound == .max ? nil : range.upperBound)
        guard let value = Int(try text(wanted).filter { $0 != "_" }), range.contains(value) else {
            throw RecipeValueError(wanted: wanted)
        }
        return value
    }

    func number(in range: NumberRange) throws(RecipeValueError) -> Double {
        let wanted = "a number " + range.description
        guard let value = Double(try text(wanted)), value.isFinite, range.contains(value) else {
            throw RecipeValueError(wanted: wanted)
        }
        return value
    }

    func flag() throws(RecipeValueError) -> Bool {
        switch try text("true or false") {
        case "true", "True", "TRUE": return true
        case "false", "False", "FALSE": return false
        default: throw RecipeValueError(wanted: "true or false")
        }
    }

    func choice<Choice: RawRepresentable & CaseIterable>(
        _: Choice.Type
    ) throws(RecipeValueError) -> Choice where Choice.RawValue == String {
        let names = Choice.allCases.map(\.rawValue)
        let wanted = names.count == 1 ? "'\(names[0])'" : "one of: " + names.joined(separator: ", ")
        let text = try text(wanted)
        guard let choice = Choice(rawValue: text) else {
            throw RecipeValueError(
                wanted: wanted, remedy: closestMatch(to: text, among: names).map { "did you mean '\($0)'?" })
        }
        return choice
    }

    /// One value or a list of them.
    func items() throws(RecipeValueError) -> [RecipeValue] {
        switch self {
        case .list(let items): return items
        case .scalar: return [self]
        case .null, .map: throw RecipeValueError(wanted: "a value or a list of values")
        }
    }

    func strings() throws(RecipeValueError) -> [String] {
        var strings: [String] = []
        for item in try items() { strings.append(try item.string("a text or a list of texts")) }
        guard !strings.isEmpty else { throw RecipeValueError(wanted: "at least one value") }
        return strings
    }

    func stringMap() throws(RecipeValueError) -> [String: String] {
        guard case .map(let members) = self else {
            throw RecipeValueError(wanted: "a mapping of texts, as in {prompt: question}")
        }
        var map: [String: String] = [:]
        for member in members { map[member.key] = try member.value.string("a text for '\(member.key)'") }
        return map
    }

    /// Bytes, with or without a unit: 12GiB, 12 GB, 8000000000.
    func byteCount() throws(RecipeValueError) -> Int {
        let wanted = "a size such as 12GiB or 800MB"
        let text = try text(wanted)
        let digits = text.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
        let unit = text.dropFirst(digits.count).filter { $0 != " " }.uppercased()
        let units: [String: Double] = [
            "": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
            "KIB": 0x1p10, "MIB": 0x1p20, "GIB": 0x1p30, "TIB": 0x1p40,
        ]
        guard let number = Double(digits), let scale = units[unit], number > 0, number * scale < 0x1p60,
            number * scale >= 1
        else {
            throw RecipeValueError(wanted: wanted)
        }
        return Int(number * scale)
    }

    private static func bounds(_ low: Int, _ high: Int?) -> String {
        if let high { return " from \(low) to \(high)" }
        return low == .min ? "" : " of at least \(low)"
    }
}

/// The numbers that a key takes.
enum NumberRange: Sendable {
    case positive, atLeastZero, belowOne, upToOne

    func contains(_ value: Double) -> Bool {
        switch self {
        case .positive: value > 0
        case .atLeastZero: value >= 0
        case .belowOne: value >= 0 && value < 1
        case .upToOne: value >= 0 && value <= 1
        }
    }

    var description: String {
        switch self {
        case .positive: "above 0"
        case .atLeastZero: "of at least 0"
        case .belowOne: "from 0 to below 1"
        case .upToOne: "from 0 to 1"
        }
    }
}
