public import MartletCore
internal import Yams

#if canImport(FoundationEssentials)
internal import FoundationEssentials
#else
internal import Foundation
#endif

extension Recipe {
    /// Reads a recipe file, applies `overrides` ("key=value", as after `--set`), and checks the whole.
    public init(contentsOf path: String, overrides: [String] = []) throws(MartletError) {
        let text: String
        do { text = try String(contentsOfFile: path, encoding: .utf8) } catch {
            throw MartletError(
                "cannot read the recipe", in: path, because: "there is no such file, or it is not UTF-8 text",
                fix: "check the path; `martlet recipe` lists the keys of a recipe")
        }
        let name = path.split(separator: "/").last.map(String.init) ?? path
        try self.init(yaml: text, name: name, overrides: overrides)
    }

    /// Reads a recipe from YAML text; `name` is what errors call it.
    public init(yaml: String, name: String = "recipe", overrides: [String] = []) throws(MartletError) {
        self.init()
        try read(yaml, name: name)
        for override in overrides { try set(override) }
        try validate()
    }

    private mutating func read(_ yaml: String, name: String) throws(MartletError) {
        guard let root = try Recipe.compose(yaml, name: name) else { return }
        guard case .mapping(let members) = root else {
            throw MartletError(
                "a recipe is a list of 'key: value' lines", in: name, because: "the file holds something else",
                fix: "write for example 'model: /path/to/model'")
        }
        for (key, value) in members {
            guard let keyName = key.string else { continue }
            let line = (key.mark ?? value.mark).map { "\(name), line \($0.line)" } ?? name
            try set(keyName, to: RecipeValue(value), at: line)
        }
    }

    /// Applies one "key=value".
    public mutating func set(_ override: String) throws(MartletError) {
        guard let equals = override.firstIndex(of: "="), equals != override.startIndex else {
            throw MartletError(
                "'\(override)' is not an override", in: "--set", fix: "write --set key=value, as in --set lora_r=8")
        }
        let key = String(override[..<equals])
        let node = try Recipe.compose(String(override[override.index(after: equals)...]), name: "--set \(key)")
        try set(key, to: node.map(RecipeValue.init) ?? .null, at: "--set \(override)")
    }

    private mutating func set(_ name: String, to value: RecipeValue, at place: String) throws(MartletError) {
        guard let key = RecipeKey.key(named: name) else {
            let close = closestMatch(to: name, among: RecipeKey.all.map(\.name))
            throw MartletError(
                "a recipe has no key '\(name)'", in: place,
                because: "only known keys are read, so that no setting is silently ignored",
                fix: close.map { "did you mean '\($0)'?" } ?? "`martlet recipe` lists the keys")
        }
        do { try key.read(&self, value) } catch {
            throw MartletError(
                "'\(name)' cannot be \(value.kind)", in: place, because: "it takes \(error.wanted)",
                fix: error.remedy ?? "`martlet recipe` explains every key")
        }
        places[name] = value.isNull ? nil : place
    }

    private static func compose(_ yaml: String, name: String) throws(MartletError) -> Node? {
        do { return try Yams.compose(yaml: yaml, Resolver.basic) } catch let error as YamlError {
            throw error.explained(name)
        } catch {
            throw MartletError("not valid YAML", in: name, because: "\(error)", fix: "write 'key: value' lines")
        }
    }
}

extension RecipeValue {
    fileprivate init(_ node: Node) {
        switch node {
        case .scalar(let scalar):
            let isNull = scalar.style == .plain && ["", "~", "null", "Null", "NULL"].contains(scalar.string)
            self = isNull ? .null : .scalar(scalar.string)
        case .sequence(let items): self = .list(items.map(RecipeValue.init))
        case .mapping(let members):
            self = .map(members.map { (key: $0.key.string ?? "?", value: RecipeValue($0.value)) })
        case .alias: self = .null
        }
    }
}

extension YamlError {
    fileprivate func explained(_ name: String) -> MartletError {
        let fix = "correct the file there; a value that holds ': ' or ' #' needs quotes"
        switch self {
        case .scanner(_, let problem, let mark, _), .parser(_, let problem, let mark, _),
            .composer(_, let problem, let mark, _):
            return MartletError("not valid YAML", in: "\(name), line \(mark.line)", because: problem, fix: fix)
        case .duplicatedKeysInMapping(let duplicates, let context):
            return MartletError(
                "the recipe gives '\(duplicates.first ?? "?")' twice", in: "\(name), line \(context.mark.line)",
                because: "only one of the values could count", fix: "delete one of them")
        default:
            return MartletError("not valid YAML", in: name, because: "\(self)", fix: fix)
        }
    }
}
