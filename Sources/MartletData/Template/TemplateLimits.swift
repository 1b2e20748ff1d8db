internal import MartletCore

/// What one rendering may use before it ends in an error: a template comes with a model, from anywhere.
package struct TemplateLimits: Sendable {
    /// Evaluated nodes, plus one for each item or some bytes that an operation handles. About a second's work.
    package var steps = 2_000_000
    /// Steps more for each message (templates look ahead and back), and for each byte given.
    package var stepsPerMessage = 5_000
    package var stepsPerByte = 16
    /// Nested blocks, expressions and macro calls at run time.
    package var callDepth = 400
    /// Nested containers in one value.
    package var valueDepth = 300
    /// Bytes of one string, and of the rendered text.
    package var textBytes = 16 << 20
    /// Items of a range, as in transformers' sandbox.
    package var range = 100_000

    package init() {}
}

extension TemplateLimits {
    /// The steps for rendering these values.
    func steps(for messages: [JSONObject], _ others: [JSON]) -> Int {
        var bytes = 0
        for message in messages { bytes += TemplateLimits.size(of: .object(message)) }
        for value in others { bytes += TemplateLimits.size(of: value) }
        return steps + stepsPerMessage * messages.count + stepsPerByte * bytes
    }

    private static func size(of value: JSON) -> Int {
        switch value {
        case .string(let text): text.utf8.count
        case .array(let items): items.reduce(8) { $0 + size(of: $1) }
        case .object(let object): object.reduce(8) { $0 + $1.key.utf8.count + size(of: $1.value) }
        default: 8
        }
    }
}

extension TemplateInterpreter {
    /// An error at the line being rendered.
    func failure(_ reason: String, fix: String? = nil) -> MartletError {
        MartletError(
            "the chat template failed", in: "\(program.name), line \(line)", because: reason,
            fix: fix ?? "correct the template there, or the message it was rendering"
        )
    }

    func charge(_ steps: Int) throws(MartletError) {
        stepsLeft -= steps
        if stepsLeft < 0 { throw exhausted("it needs more than \(stepLimit) steps") }
    }

    /// For work done character by character.
    func charge(characters: Int) throws(MartletError) { try charge(characters >> 2) }

    func charge(bytes: Int) throws(MartletError) {
        if bytes > limits.textBytes { throw exhausted("it builds a text of more than \(limits.textBytes) bytes") }
        try charge(bytes >> 6)
    }

    func exhausted(_ reason: String) -> MartletError {
        failure(reason, fix: "shorten the conversation, or look for a loop or recursion without an end in the template")
    }

    /// One level deeper; the caller leaves it again with `depth -= 1`.
    func descend() throws(MartletError) {
        depth += 1
        if depth > limits.callDepth { throw exhausted("blocks, expressions or macro calls are nested too deeply") }
    }

    func makeList(_ items: [TemplateValue]) throws(MartletError) -> TemplateValue { .list(try box(items)) }
    func makeTuple(_ items: [TemplateValue]) throws(MartletError) -> TemplateValue { .tuple(try box(items)) }

    func makeIterator(_ items: [TemplateValue], _ type: String = "generator") throws(MartletError) -> TemplateValue {
        try charge(items.count)
        return .iterator(IteratorBox(items, type))
    }

    func makeString(_ text: String) throws(MartletError) -> TemplateValue {
        try charge(bytes: text.utf8.count)
        return .string(text)
    }

    private func box(_ items: [TemplateValue]) throws(MartletError) -> ListBox {
        try charge(items.count)
        let box = ListBox(items)
        guard box.depth <= limits.valueDepth else {
            throw exhausted("it nests lists more than \(limits.valueDepth) deep")
        }
        return box
    }

    /// A dictionary in which a later entry replaces an earlier one with the same key.
    func makeDict(
        _ entries: [(key: TemplateValue, value: TemplateValue)], message: Int? = nil
    ) throws(MartletError) -> TemplateValue {
        var unique: [(key: TemplateValue, value: TemplateValue)] = []
        unique.reserveCapacity(entries.count)
        for entry in entries {
            try charge(1 + unique.count >> 3)
            try requireHashable(entry.key)
            var at = 0
            while at < unique.count, try !equal(unique[at].key, entry.key) { at += 1 }
            if at < unique.count { unique[at].value = entry.value } else { unique.append(entry) }
        }
        let box = DictBox(unique, message: message)
        guard box.depth <= limits.valueDepth else {
            throw exhausted("it nests dicts more than \(limits.valueDepth) deep")
        }
        return .dict(box)
    }

    func requireHashable(_ value: TemplateValue) throws(MartletError) {
        try charge(1)
        switch value {
        case .list, .dict, .view: throw failure("unhashable type: '\(value.typeName)'")
        case .tuple(let box): for item in box.items { try requireHashable(item) }
        default: return
        }
    }
}
