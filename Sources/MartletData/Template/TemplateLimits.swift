internal import MartletCore

/// What one rendering may use before it ends in an error: a template comes with a model, from anywhere.
package struct TemplateLimits: Sendable {
    /// Evaluated nodes, plus one for each item or 64 bytes that an operation makes.
    package var steps = 10_000_000
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
        if stepsLeft < 0 { throw exhausted("it needs more than \(limits.steps) steps") }
    }

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
