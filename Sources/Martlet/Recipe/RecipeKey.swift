package import MartletCore

/// One row of the table of settings: everything that the parser, the checks, the dump and the help text know of a key.
package struct RecipeKey: Sendable {
    package var name: String
    package var section: String
    /// As the help text names it: "number", "true|false", "lora|full".
    package var type: String
    package var meaning: String
    /// Shown instead of the value where the default depends on other keys.
    package var defaultNote: String?
    /// Whether a run may not be resumed with another value.
    package var isFixedForResume = true

    let read: @Sendable (inout Recipe, RecipeValue) throws(RecipeValueError) -> Void
    let write: @Sendable (Recipe) -> JSON

    /// The value that holds when the key is not given.
    package var defaultValue: JSON { write(Recipe()) }

    /// The value as the run uses it.
    package func value(in recipe: Recipe) -> JSON { write(recipe) }

    /// Whether the user gave the key, in a file, by `--set`, or in Swift (a value other than the default).
    package func isGiven(in recipe: Recipe) -> Bool { recipe.places[name] != nil || write(recipe) != defaultValue }

    static func key(named name: String) -> RecipeKey? { byName[name] }
    private static let byName = Dictionary(all.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
}

typealias RecipePath<Value> = any WritableKeyPath<Recipe, Value> & Sendable

// The kinds of rows.
extension RecipeKey {
    static func text(_ name: String, _ path: RecipePath<String>, _ meaning: String) -> RecipeKey {
        RecipeKey(name, "text", meaning) { recipe, value throws(RecipeValueError) in
            recipe[keyPath: path] = try value.string("a text")
        } write: {
            .string($0[keyPath: path])
        }
    }

    static func texts(_ name: String, _ path: RecipePath<[String]>, _ meaning: String) -> RecipeKey {
        RecipeKey(name, "text or list", meaning) { recipe, value throws(RecipeValueError) in
            recipe[keyPath: path] = try value.strings()
        } write: {
            .array($0[keyPath: path].map(JSON.string))
        }
    }

    static func map(_ name: String, _ path: RecipePath<[String: String]>, _ meaning: String) -> RecipeKey {
        RecipeKey(name, "mapping", meaning) { recipe, value throws(RecipeValueError) in
            recipe[keyPath: path] = try value.stringMap()
        } write: { recipe in
            var object = JSONObject()
            for (key, value) in recipe[keyPath: path].sorted(by: { $0.key < $1.key }) { object[key] = .string(value) }
            return .object(object)
        }
    }

    static func flag(_ name: String, _ path: RecipePath<Bool>, _ meaning: String) -> RecipeKey {
        RecipeKey(name, "true|false", meaning) { recipe, value throws(RecipeValueError) in
            recipe[keyPath: path] = try value.flag()
        } write: {
            .bool($0[keyPath: path])
        }
    }

    static func integer(
        _ name: String, _ path: RecipePath<Int>, _ range: ClosedRange<Int>, _ meaning: String
    ) -> RecipeKey {
        RecipeKey(name, "integer", meaning) { recipe, value throws(RecipeValueError) in
            recipe[keyPath: path] = try value.integer(in: range)
        } write: {
            .integer($0[keyPath: path])
        }
    }

    static func integer(
        _ name: String, _ path: RecipePath<Int?>, _ range: ClosedRange<Int> = 1...Int.max, default note: String,
        _ meaning: String
    ) -> RecipeKey {
        var key = RecipeKey(name, "integer", meaning) { recipe, value throws(RecipeValueError) in
            recipe[keyPath: path] = try value.isNull ? nil : value.integer(in: range)
        } write: { recipe in
            recipe[keyPath: path].map(JSON.integer) ?? .null
        }
        key.defaultNote = note
        return key
    }

    static func number(_ name: String, _ path: RecipePath<Double>, _ range: NumberRange, _ meaning: String) -> RecipeKey
    {
        RecipeKey(name, "number", meaning) { recipe, value throws(RecipeValueError) in
            recipe[keyPath: path] = try value.number(in: range)
        } write: {
            .number($0[keyPath: path])
        }
    }

    static func number(
        _ name: String, _ path: RecipePath<Double?>, _ range: NumberRange, default note: String, _ meaning: String
    ) -> RecipeKey {
        var key = RecipeKey(name, "number", meaning) { recipe, value throws(RecipeValueError) in
            recipe[keyPath: path] = try value.isNull ? nil : value.number(in: range)
        } write: { recipe in
            recipe[keyPath: path].map(JSON.number) ?? .null
        }
        key.defaultNote = note
        return key
    }

    static func bytes(_ name: String, _ path: RecipePath<Int?>, default note: String, _ meaning: String) -> RecipeKey {
        var key = RecipeKey(name, "size", meaning) { recipe, value throws(RecipeValueError) in
            recipe[keyPath: path] = try value.isNull ? nil : value.byteCount()
        } write: { recipe in
            recipe[keyPath: path].map(JSON.integer) ?? .null
        }
        key.defaultNote = note
        return key
    }

    static func choice<Choice: RawRepresentable & CaseIterable & Sendable>(
        _ name: String, _ path: RecipePath<Choice>, _ meaning: String
    ) -> RecipeKey where Choice.RawValue == String {
        RecipeKey(name, Choice.allCases.map(\.rawValue).joined(separator: "|"), meaning) {
            recipe, value throws(RecipeValueError) in
            recipe[keyPath: path] = try value.choice(Choice.self)
        } write: {
            .string($0[keyPath: path].rawValue)
        }
    }

    static func choices<Choice: RawRepresentable & CaseIterable & Sendable>(
        _ name: String, _ path: RecipePath<[Choice]?>, default note: String, _ meaning: String
    ) -> RecipeKey where Choice.RawValue == String {
        let type = "list of " + Choice.allCases.map(\.rawValue).joined(separator: "|")
        var key = RecipeKey(name, type, meaning) { recipe, value throws(RecipeValueError) in
            if value.isNull { return recipe[keyPath: path] = nil }
            var choices: [Choice] = []
            for item in try value.items() { choices.append(try item.choice(Choice.self)) }
            recipe[keyPath: path] = choices
        } write: { recipe in
            recipe[keyPath: path].map { JSON.array($0.map { .string($0.rawValue) }) } ?? .null
        }
        key.defaultNote = note
        return key
    }

    private init(
        _ name: String, _ type: String, _ meaning: String,
        read: @escaping @Sendable (inout Recipe, RecipeValue) throws(RecipeValueError) -> Void,
        write: @escaping @Sendable (Recipe) -> JSON
    ) {
        self.name = name
        self.type = type
        self.meaning = meaning
        self.read = read
        self.write = write
        section = ""
    }
}

extension RecipeValue {
    var isNull: Bool { if case .null = self { true } else { false } }
}
