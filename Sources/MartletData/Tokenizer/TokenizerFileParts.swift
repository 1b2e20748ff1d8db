import MartletCore

extension TokenizerFile {
    // MARK: Normalizer

    func normalizer() throws(MartletError) -> [NormalizerStep] {
        guard let part = component("normalizer") else { return [] }
        return try normalizerSteps(part)
    }

    private func normalizerSteps(_ part: Component) throws(MartletError) -> [NormalizerStep] {
        switch part.type {
        case "NFC": return [.form(.nfc)]
        case "NFD": return [.form(.nfd)]
        case "NFKC": return [.form(.nfkc)]
        case "NFKD": return [.form(.nfkd)]
        case "Lowercase": return [.lowercase]
        case "Strip": return [.strip(left: try part.bool("strip_left"), right: try part.bool("strip_right"))]
        case "Prepend": return [.prepend(Array(try part.string("prepend").utf8))]
        case "Replace": return [.replace(try part.pattern(), with: Array(try part.string("content").utf8))]
        case "Sequence":
            var steps: [NormalizerStep] = []
            for part in try part.list("normalizers") { steps += try normalizerSteps(part) }
            return steps
        default:
            throw part.unsupported(
                "normalizer", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "Prepend", "Replace", "Sequence"])
        }
    }

    // MARK: Pre-tokenizer

    func preTokenizer() throws(MartletError) -> [PreTokenizerStep] {
        guard let part = component("pre_tokenizer") else { return [] }
        return try preTokenizerSteps(part)
    }

    private func preTokenizerSteps(_ part: Component) throws(MartletError) -> [PreTokenizerStep] {
        switch part.type {
        case "Split":
            return [.split(try part.pattern(), try part.choice("behavior"), inverts: try part.bool("invert"))]
        case "ByteLevel": return try byteLevel(part)
        case "Digits":
            let behavior: SplitBehavior = try part.bool("individual_digits") ? .isolated : .contiguous
            return [.split(try scalars(UnicodeClasses.splitDigits), behavior, inverts: false)]
        case "WhitespaceSplit": return [.split(try scalars(UnicodeClasses.space), .removed, inverts: false)]
        case "Whitespace": return [.split(try words(), .removed, inverts: true)]
        case "Punctuation":
            let behavior: SplitBehavior = try part.choice("behavior", default: .isolated)
            return [.split(try scalars(UnicodeClasses.splitPunctuation), behavior, inverts: false)]
        case "Metaspace": return try metaspace(part)
        case "Sequence":
            var steps: [PreTokenizerStep] = []
            for part in try part.list("pretokenizers") { steps += try preTokenizerSteps(part) }
            return steps
        default:
            throw part.unsupported(
                "pre-tokenizer",
                [
                    "Split", "ByteLevel", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation", "Metaspace",
                    "Sequence",
                ])
        }
    }

    private func scalars(_ set: ScalarSet) throws(MartletError) -> RegexProgram {
        try RegexProgram(.set(set), pattern: "a class of characters")
    }

    /// `\w+|[^\w\s]+` in the syntax of Rust's `regex`, where `\w` has the join controls too.
    private func words() throws(MartletError) -> RegexProgram {
        let word = UnicodeClasses.word.union(ScalarSet([0x200C...0x200D]))
        let other = word.union(UnicodeClasses.space).inverted
        let runs = [word, other].map { RegexNode.repetition(.set($0), least: 1, most: nil, .greedy) }
        return try RegexProgram(.alternation(runs), pattern: #"\w+|[^\w\s]+"#)
    }

    private static let gpt2Pattern =
        #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#

    private func byteLevel(_ part: Component) throws(MartletError) -> [PreTokenizerStep] {
        var steps: [PreTokenizerStep] = []
        if try part.bool("add_prefix_space") { steps.append(.prefixSpace) }
        if try part.bool("use_regex", default: true) {
            steps.append(.split(try RegexProgram(TokenizerFile.gpt2Pattern), .isolated, inverts: false))
        }
        return steps + [.spellBytes]
    }

    private func metaspace(_ part: Component) throws(MartletError) -> [PreTokenizerStep] {
        let (scalar, prepends) = try metaspaceOptions(part)
        var steps: [PreTokenizerStep] = [.metaspace(replacement: utf8(scalar.value), prepends: prepends)]
        if try part.bool("split", default: true) {
            steps.append(.split(try scalars(ScalarSet(scalar)), .mergedWithNext, inverts: false))
        }
        return steps
    }

    private func metaspaceOptions(
        _ part: Component
    ) throws(MartletError) -> (replacement: UnicodeScalar, prepends: MetaspacePrepending) {
        var prepends: MetaspacePrepending = try part.choice("prepend_scheme", default: .always)
        if part.json["add_prefix_space"]?.bool == false {
            guard part.json["prepend_scheme"] == nil || prepends == .never else {
                throw part.failure(
                    "Metaspace has settings that contradict each other",
                    because: "\"add_prefix_space\" is false and \"prepend_scheme\" is \"\(prepends.rawValue)\"",
                    fix: "set \"prepend_scheme\" to \"never\" or drop \"add_prefix_space\"")
            }
            prepends = .never
        }
        return (try part.scalar("replacement"), prepends)
    }

    // MARK: Post-processor

    /// The ids put before and after a single text.
    func postProcessor() throws(MartletError) -> (leading: [Int32], trailing: [Int32]) {
        guard let part = component("post_processor") else { return ([], []) }
        return try processorIDs(part)
    }

    private func processorIDs(_ part: Component) throws(MartletError) -> (leading: [Int32], trailing: [Int32]) {
        switch part.type {
        case "ByteLevel": return ([], [])  // It only trims offsets for display.
        case "TemplateProcessing": return try templateIDs(part)
        case "Sequence":
            var ids: (leading: [Int32], trailing: [Int32]) = ([], [])
            for part in try part.list("processors") {
                let (leading, trailing) = try processorIDs(part)
                ids = (leading + ids.leading, ids.trailing + trailing)
            }
            return ids
        default: throw part.unsupported("post-processor", ["ByteLevel", "TemplateProcessing", "Sequence"])
        }
    }

    private func templateIDs(_ part: Component) throws(MartletError) -> (leading: [Int32], trailing: [Int32]) {
        var leading: [Int32] = [], trailing: [Int32] = []
        var sequences = 0
        for piece in try part.list("single") {
            if let sequence = piece.json["Sequence"] {
                guard sequence["id"]?.string == "A" else { throw piece.wrong("Sequence", "the sequence A") }
                sequences += 1
            } else if let token = piece.json["SpecialToken"]?["id"]?.string {
                let ids = try specialIDs(token, part)
                if sequences == 0 { leading += ids } else { trailing += ids }
            } else {
                throw piece.failure(
                    "a piece of a template is neither a sequence nor a special token",
                    fix: "write {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}} or {\"SpecialToken\": ...}")
            }
        }
        guard sequences == 1 else {
            throw part.failure(
                "a template must hold the text once", because: "its \"single\" has the sequence A \(sequences) times",
                fix: "keep one {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}")
        }
        return (leading, trailing)
    }

    private func specialIDs(_ token: String, _ part: Component) throws(MartletError) -> [Int32] {
        guard let list = part.json["special_tokens"]?[token]?["ids"]?.array else {
            throw part.failure(
                "the template names the token '\(token)', which its \"special_tokens\" do not have",
                fix: "add it to \"special_tokens\" with its ids")
        }
        var ids: [Int32] = []
        for item in list {
            guard let value = item.integer, let id = Int32(exactly: value), (0...Vocabulary.highestID).contains(id)
            else {
                throw part.failure("an id of '\(token)' is not a token id", fix: "write whole numbers from 0 up")
            }
            ids.append(id)
        }
        return ids
    }

    // MARK: Decoder

    func decoder() throws(MartletError) -> [DecoderStep] {
        guard let part = component("decoder") else { return [.join(separator: [0x20])] }
        var steps = try decoderSteps(part)
        // To fuse what nothing follows would only delay it.
        while case .fuse = steps.last { steps.removeLast() }
        if steps.count >= 2, case .fuse = steps[steps.count - 2],
            case .strip(let scalar, let start, 0) = steps[steps.count - 1]
        {
            steps.replaceSubrange((steps.count - 2)..., with: [.trimStart(scalar: scalar, most: start)])
        }
        return steps
    }

    private func decoderSteps(_ part: Component) throws(MartletError) -> [DecoderStep] {
        switch part.type {
        case "ByteLevel": return [.byteLevel, .fuse]
        case "ByteFallback": return [.byteFallback]
        case "Fuse": return [.fuse]
        case "Replace": return [.replace(try part.pattern(), with: Array(try part.string("content").utf8))]
        case "Strip":
            return [
                .strip(
                    scalar: try part.scalar("content").value, start: try part.count("start"),
                    stop: try part.count("stop"))
            ]
        case "Metaspace":
            let (scalar, prepends) = try metaspaceOptions(part)
            return [.metaspace(replacement: scalar.value, dropsFirst: prepends != .never)]
        case "Sequence":
            var steps: [DecoderStep] = []
            for part in try part.list("decoders") { steps += try decoderSteps(part) }
            return steps
        default:
            throw part.unsupported(
                "decoder", ["ByteLevel", "ByteFallback", "Fuse", "Replace", "Strip", "Metaspace", "Sequence"])
        }
    }
}

extension PreTokenizerStep {
    var isByteLevel: Bool { if case .spellBytes = self { true } else { false } }
}
