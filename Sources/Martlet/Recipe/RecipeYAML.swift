private import CMartletSystem
internal import MartletCore

/// Reads YAML by libyaml's events into values that have no type yet, with the lines of the outermost keys.
final class RecipeYAML {
    private let name: String
    /// In memory of their own: the parser points to itself.
    private let parser = UnsafeMutablePointer<yaml_parser_t>.allocate(capacity: 1)
    private let current = UnsafeMutablePointer<yaml_event_t>.allocate(capacity: 1)
    private var event: yaml_event_t { current.pointee }
    private var anchors: [String: RecipeValue] = [:]
    private var depth = 0

    /// A recipe needs three.
    private static let depthLimit = 32

    /// The document in `text`, nil if there is none; `name` is what errors call it.
    static func parse(_ text: String, name: String) throws(MartletError) -> RecipeValue? {
        try RecipeYAML(name: name).document(Array(text.utf8))
    }

    private init(name: String) {
        self.name = name
        parser.initialize(to: yaml_parser_t())
        current.initialize(to: yaml_event_t())
    }

    deinit {
        yaml_event_delete(current)
        yaml_parser_delete(parser)
        current.deallocate()
        parser.deallocate()
    }

    private func document(_ bytes: [UInt8]) throws(MartletError) -> RecipeValue? {
        guard yaml_parser_initialize(parser) == 1 else { throw invalid("there is no memory to read it", nil) }
        var outcome = Result<RecipeValue?, MartletError>.success(nil)
        // The parser keeps a pointer to its input, which must stay until the last event.
        bytes.withUnsafeBufferPointer { input in
            yaml_parser_set_encoding(parser, YAML_UTF8_ENCODING)
            yaml_parser_set_input_string(parser, input.baseAddress, input.count)
            outcome = Result { () throws(MartletError) in try stream() }
        }
        return try outcome.get()
    }

    // MARK: Events

    private func stream() throws(MartletError) -> RecipeValue? {
        try advance()
        try advance()
        guard event.type == YAML_DOCUMENT_START_EVENT else { return nil }
        try advance()
        let root = try value()
        try advance()
        guard event.type == YAML_STREAM_END_EVENT else { throw invalid("it holds more than one document", line) }
        return root
    }

    /// Where the event begins, from 1.
    private var line: Int { Int(event.start_mark.line) + 1 }

    private func advance() throws(MartletError) {
        yaml_event_delete(current)
        guard yaml_parser_parse(parser, current) == 1 else {
            let problem = parser.pointee.problem.map { String(cString: $0) } ?? "it cannot be read"
            // What is not even text has an offset in bytes, and no mark.
            let hasMark = parser.pointee.error != YAML_READER_ERROR
            throw invalid(problem, hasMark ? Int(parser.pointee.problem_mark.line) + 1 : nil)
        }
    }

    private func invalid(_ reason: String, _ line: Int?) -> MartletError {
        MartletError(
            "not valid YAML", in: name + (line.map { ", line \($0)" } ?? ""), because: reason,
            fix: "correct the file there; a value that holds ': ' or ' #' needs quotes")
    }

    /// The value that begins at this event; afterwards the event is the one behind the value.
    private func value() throws(MartletError) -> RecipeValue {
        depth += 1
        defer { depth -= 1 }
        guard depth <= RecipeYAML.depthLimit else {
            throw invalid("lists and mappings are nested deeper than \(RecipeYAML.depthLimit)", line)
        }
        let result: RecipeValue, anchor: String?
        switch event.type {
        case YAML_ALIAS_EVENT:
            let name = text(event.data.alias.anchor) ?? ""
            guard let known = anchors[name] else { throw invalid("found undefined alias '\(name)'", line) }
            (result, anchor) = (known, nil)
            try advance()
        case YAML_SCALAR_EVENT:
            anchor = text(event.data.scalar.anchor)
            result = scalar
            try advance()
        case YAML_SEQUENCE_START_EVENT:
            anchor = text(event.data.sequence_start.anchor)
            result = try list()
        default:
            anchor = text(event.data.mapping_start.anchor)
            result = try map()
        }
        if let anchor { anchors[anchor] = result }
        return result
    }

    private var scalar: RecipeValue {
        let data = event.data.scalar
        let text = String(decoding: UnsafeBufferPointer(start: data.value, count: data.length), as: UTF8.self)
        let isNull =
            data.style == YAML_PLAIN_SCALAR_STYLE && ["", "~", "null", "Null", "NULL"].contains(text)
        return isNull ? .null : .scalar(text)
    }

    private func list() throws(MartletError) -> RecipeValue {
        var items: [RecipeValue] = []
        try advance()
        while event.type != YAML_SEQUENCE_END_EVENT { items.append(try value()) }
        try advance()
        return .list(items)
    }

    private func map() throws(MartletError) -> RecipeValue {
        var members: [RecipeValue.Member] = []
        try advance()
        while event.type != YAML_MAPPING_END_EVENT {
            let line = line
            guard event.type == YAML_SCALAR_EVENT else { throw invalid("a key is not a text", line) }
            let key = text(event.data.scalar.value) ?? ""
            guard !members.contains(where: { $0.key == key }) else {
                throw MartletError(
                    "the recipe gives '\(key)' twice", in: "\(name), line \(line)",
                    because: "only one of the values could count", fix: "delete one of them")
            }
            try advance()
            members.append(RecipeValue.Member(key: key, line: line, value: try value()))
        }
        try advance()
        return .map(members)
    }

    private func text(_ bytes: UnsafeMutablePointer<yaml_char_t>?) -> String? {
        bytes.map { String(cString: $0) }
    }
}
