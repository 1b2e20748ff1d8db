package import MartletCore

/// What a `tokenizer.json` holds, checked and ready to run.
struct TokenizerParts {
    var vocabulary: Vocabulary
    var addedTokens: [AddedToken]
    var normalizer: [NormalizerStep]
    var preTokenizer: [PreTokenizerStep]
    var model: BPEModel
    var leadingIDs: [Int32]
    var trailingIDs: [Int32]
    var decoder: [DecoderStep]
}

extension Tokenizer {
    /// Reads `tokenizer.json` of a model's folder, and the names of special tokens from `tokenizer_config.json` and
    /// `special_tokens_map.json` where they are there.
    package convenience init(folder: String) throws(MartletError) {
        let path = folder + "/tokenizer.json"
        guard let json = try Tokenizer.read(path) else {
            throw MartletError(
                "there is no tokenizer", in: path, because: "the file is not there or cannot be read",
                fix: "give the folder of a model that has a tokenizer.json")
        }
        var special: [String: String] = [:]
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            guard let json = try Tokenizer.read(folder + "/" + name) else { continue }
            special.merge(Tokenizer.specialTokens(in: json)) { $1 }
        }
        do {
            self.init(try TokenizerFile(json).parts(), specialTokens: special)
        } catch {
            throw error.at(path)
        }
    }

    /// Makes a tokenizer of a parsed `tokenizer.json`; it knows no names of special tokens.
    package convenience init(json: JSON) throws(MartletError) {
        self.init(try TokenizerFile(json).parts(), specialTokens: [:])
    }

    private static func read(_ path: String) throws(MartletError) -> JSON? {
        FileSystem.exists(path) ? try FileSystem.readJSON(path) : nil
    }

    /// The members '*_token' of a configuration: a text, or an added token with its `content`.
    private static func specialTokens(in json: JSON) -> [String: String] {
        var tokens: [String: String] = [:]
        for (key, value) in json.object ?? [:] where key.hasSuffix("_token") {
            if let text = value.string ?? value["content"]?.string { tokens[key] = text }
        }
        return tokens
    }
}

/// Reads the parts of a `tokenizer.json`. Each file of an extension reads one part.
struct TokenizerFile {
    let json: JSON

    init(_ json: JSON) throws(MartletError) {
        guard json.object != nil else {
            throw MartletError(
                "a tokenizer is an object, not \(json.kind)", fix: "check that the file is a tokenizer.json")
        }
        self.json = json
    }

    func parts() throws(MartletError) -> TokenizerParts {
        if let version = json["version"], version.string != "1.0" {
            throw MartletError(
                "the tokenizer has an unknown version", in: "key \"version\"", because: "only \"1.0\" is known",
                fix: "save the tokenizer with a current release of tokenizers")
        }
        var steps = try preTokenizer()
        let readsBytes = steps.last?.isByteLevel ?? false
        if readsBytes { steps.removeLast() }
        let model = try ModelReader(file: self)
        let added = try addedTokens(model)
        let normalizer = try normalizer()
        let machine = RegexMachine()
        machine.refill(forText: 100 * added.count)
        let entries = added.map { token in
            let own = Array(token.text.utf8)
            let decoded = token.isNormalized ? normalizer.normalize(own, machine) : own
            return Vocabulary.Added(id: token.id, text: token.text, decodedText: decoded, isSpecial: token.isSpecial)
        }
        guard !machine.isExhausted else {
            throw MartletError(
                "the normalizer takes too long", in: "key \"normalizer\"",
                because: "it backtracks or lengthens texts without end on the added tokens",
                fix: "use the normalizer of the published model")
        }
        let vocabulary = Vocabulary(model: model.tokens, added: entries)
        let (leading, trailing) = try postProcessor()
        return TokenizerParts(
            vocabulary: vocabulary, addedTokens: added, normalizer: normalizer, preTokenizer: steps,
            model: try model.bpe(vocabulary, unitsAreBytes: readsBytes), leadingIDs: leading, trailingIDs: trailing,
            decoder: try decoder())
    }

    // MARK: Reading members

    /// A component and the key path of it, for messages.
    struct Component {
        var json: JSON
        var path: String

        var type: String? { json["type"]?.string }

        func failure(_ problem: String, because reason: String? = nil, fix: String) -> MartletError {
            MartletError(problem, in: "key \"\(path)\"", because: reason, fix: fix)
        }

        func wrong(_ key: String, _ wanted: String) -> MartletError {
            MartletError(
                "\"\(key)\" is not \(wanted)", in: "key \"\(path.isEmpty ? key : path + "." + key)\"",
                because: "it is \(json[key]?.kind ?? "missing")", fix: "write \(wanted) there, as tokenizers saves it")
        }

        func unsupported(_ what: String, _ known: [String]) -> MartletError {
            let name = type ?? "(without a \"type\")"
            let guess = closestMatch(to: name, among: known).map { "; did you mean \($0)?" } ?? ""
            return failure(
                "the \(what) \(name) is not supported",
                because: "the supported ones are \(known.joined(separator: ", "))",
                fix: "use a model whose tokenizer.json has one of these" + guess)
        }

        func string(_ key: String) throws(MartletError) -> String {
            guard let value = json[key]?.string else { throw wrong(key, "a string") }
            return value
        }

        func bool(_ key: String, default missing: Bool? = nil) throws(MartletError) -> Bool {
            if let value = json[key]?.bool { return value }
            if json[key] == nil || json[key]?.isNull == true, let missing { return missing }
            throw wrong(key, "true or false")
        }

        func count(_ key: String) throws(MartletError) -> Int {
            guard let value = json[key]?.integer, (0...1_000_000).contains(value) else { throw wrong(key, "a count") }
            return value
        }

        func scalar(_ key: String, default missing: UnicodeScalar? = nil) throws(MartletError) -> UnicodeScalar {
            if json[key] == nil, let missing { return missing }
            let scalars = try string(key).unicodeScalars
            guard let scalar = scalars.first, scalars.count == 1 else { throw wrong(key, "a string of one character") }
            return scalar
        }

        func list(_ key: String) throws(MartletError) -> [Component] {
            guard let items = json[key]?.array else { throw wrong(key, "a list") }
            return items.enumerated().map { Component(json: $1, path: "\(path).\(key)[\($0)]") }
        }

        /// A member that is one of the cases of an enumeration, under its raw value.
        func choice<Choice: RawRepresentable & CaseIterable>(
            _ key: String, default missing: Choice? = nil
        ) throws(MartletError) -> Choice where Choice.RawValue == String {
            if json[key] == nil, let missing { return missing }
            guard let value = Choice(rawValue: try string(key)) else {
                throw wrong(key, "one of " + Choice.allCases.map(\.rawValue).joined(separator: ", "))
            }
            return value
        }

        /// `{"Regex": ...}` or `{"String": ...}`.
        func pattern() throws(MartletError) -> RegexProgram {
            do {
                if let text = json["pattern"]?["Regex"]?.string { return try RegexProgram(text) }
                if let text = json["pattern"]?["String"]?.string {
                    return try RegexProgram(.literal(text), pattern: text)
                }
            } catch {
                throw error.at("key \"\(path).pattern\"")
            }
            throw wrong("pattern", "an object with \"Regex\" or \"String\"")
        }
    }

    /// A part that may be missing or null.
    func component(_ key: String) -> Component? {
        guard let part = json[key], !part.isNull else { return nil }
        return Component(json: part, path: key)
    }
}
