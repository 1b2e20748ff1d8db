/// A JSON value that keeps the order of keys (chat templates print tools in the order of the file).
package enum JSON: Sendable, Equatable {
    case null
    case bool(Bool)
    case integer(Int)
    case number(Double)
    case string(String)
    case array([JSON])
    case object(JSONObject)

    package subscript(key: String) -> JSON? {
        if case .object(let object) = self { object[key] } else { nil }
    }
    package var string: String? { if case .string(let s) = self { s } else { nil } }
    package var bool: Bool? { if case .bool(let b) = self { b } else { nil } }
    package var array: [JSON]? { if case .array(let a) = self { a } else { nil } }
    package var object: JSONObject? { if case .object(let o) = self { o } else { nil } }
    package var isNull: Bool { self == .null }

    /// The value as an integer; a whole `number` counts.
    package var integer: Int? {
        switch self {
        case .integer(let i): i
        case .number(let d): Int(exactly: d)
        default: nil
        }
    }

    package var number: Double? {
        switch self {
        case .integer(let i): Double(i)
        case .number(let d): d
        default: nil
        }
    }

    /// The kind of the value, as an error message names it.
    package var kind: String {
        switch self {
        case .null: "null"
        case .bool: "a boolean"
        case .integer, .number: "a number"
        case .string: "a string"
        case .array: "a list"
        case .object: "an object"
        }
    }
}

/// The members of a JSON object, in file order; a repeated key keeps its place and takes the last value.
package struct JSONObject: Sendable, Equatable, Sequence, ExpressibleByDictionaryLiteral {
    package private(set) var keys: [String] = []
    private var members: [ExactKey: JSON] = [:]

    package init() {}
    package init(dictionaryLiteral elements: (String, JSON)...) {
        for (key, value) in elements { self[key] = value }
    }

    package var count: Int { keys.count }
    package subscript(key: String) -> JSON? {
        get { members[ExactKey(text: key)] }
        set {
            guard let newValue else {
                if members.removeValue(forKey: ExactKey(text: key)) != nil {
                    keys.removeAll { ExactKey(text: $0) == ExactKey(text: key) }
                }
                return
            }
            if members.updateValue(newValue, forKey: ExactKey(text: key)) == nil { keys.append(key) }
        }
    }

    package func makeIterator() -> AnyIterator<(key: String, value: JSON)> {
        var index = 0
        return AnyIterator {
            guard index < keys.count else { return nil }
            defer { index += 1 }
            return (keys[index], members[ExactKey(text: keys[index])] ?? .null)
        }
    }

    package static func == (a: JSONObject, b: JSONObject) -> Bool { a.keys == b.keys && a.members == b.members }
}

/// A key that equals another only if it is the same scalars: Swift's strings also equal other spellings of the same
/// characters (U+212B and U+00C5), which a vocabulary keeps apart.
private struct ExactKey: Hashable, Sendable {
    let text: String

    static func == (a: ExactKey, b: ExactKey) -> Bool { a.text.utf8.elementsEqual(b.text.utf8) }
    func hash(into hasher: inout Hasher) {
        var text = text
        text.withUTF8 { hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
    }
}

extension JSON: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral, ExpressibleByBooleanLiteral,
    ExpressibleByFloatLiteral, ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral
{
    package init(stringLiteral value: String) { self = .string(value) }
    package init(integerLiteral value: Int) { self = .integer(value) }
    package init(booleanLiteral value: Bool) { self = .bool(value) }
    package init(floatLiteral value: Double) { self = .number(value) }
    package init(arrayLiteral elements: JSON...) { self = .array(elements) }
    package init(dictionaryLiteral elements: (String, JSON)...) {
        var object = JSONObject()
        for (key, value) in elements { object[key] = value }
        self = .object(object)
    }
}
