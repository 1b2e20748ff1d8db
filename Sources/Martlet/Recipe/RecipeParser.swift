public import MartletCore

extension Recipe {
    /// Reads a recipe file, applies `overrides` ("key=value", as after `--set`), and checks the whole.
    public init(contentsOf path: String, overrides: [String] = []) throws(MartletError) {
        guard let bytes = try? FileSystem.read(path), let text = String(validating: bytes, as: UTF8.self) else {
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
        guard let root = try RecipeYAML.parse(yaml, name: name) else { return }
        guard case .map(let members) = root else {
            throw MartletError(
                "a recipe is a list of 'key: value' lines", in: name, because: "the file holds something else",
                fix: "write for example 'model: /path/to/model'")
        }
        for member in members { try set(member.key, to: member.value, at: "\(name), line \(member.line)") }
    }

    /// Applies one "key=value".
    public mutating func set(_ override: String) throws(MartletError) {
        guard let equals = override.firstIndex(of: "="), equals != override.startIndex else {
            throw MartletError(
                "'\(override)' is not an override", in: "--set", fix: "write --set key=value, as in --set lora_r=8")
        }
        let key = String(override[..<equals])
        let value = try RecipeYAML.parse(String(override[override.index(after: equals)...]), name: "--set \(key)")
        try set(key, to: value ?? .null, at: "--set \(override)")
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
}
