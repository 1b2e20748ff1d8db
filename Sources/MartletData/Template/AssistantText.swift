package import MartletCore

/// Which assistant messages a loss covers.
package enum AssistantTurns: Sendable, Equatable {
    case all
    case last
    /// The messages at these positions.
    case chosen(Set<Int>)
}

extension Rendering {
    /// The UTF-8 byte ranges of the text that the assistant itself wrote, with the message each belongs to.
    ///
    /// A template with `{% generation %}` blocks says it itself: their ranges are returned as they are. Otherwise a turn
    /// is what the template's loop over the messages wrote for the message, without
    ///
    /// - the header at its start. `header` is what `ChatTemplate.generationPrompt` returns. Where a turn begins
    ///   differently (a thinking prefix, or none), the longest common beginning that ends after a line, a `>`, a `]`
    ///   or a `:` is left out, so that no tag of the turn's own is cut in two;
    /// - what follows the end-of-turn token, which itself is included. A turn without one ends before the white space
    ///   at its end; if one of the tokens follows it at once (GLM: the next role's token), that is included.
    ///
    /// Throws where the template's text cannot be told apart with certainty, rather than cover too much or too little.
    package func assistantSpans(
        _ turns: AssistantTurns, header: String, endOfTurn: [String]
    ) throws(MartletError) -> [(message: Int, range: Range<Int>)] {
        let assistants = messages.indices.filter { messages[$0]["role"]?.string == "assistant" }
        let chosen: Set<Int>
        switch turns {
        case .all: chosen = Set(assistants)
        case .last: chosen = Set(assistants.suffix(1))
        case .chosen(let positions): chosen = positions.intersection(assistants)
        }
        if hasGenerationBlocks { return try markedSpans(chosen, assistants, takesAll: turns == .all) }
        let finder = AssistantTextFinder(rendering: self, header: header, endOfTurn: endOfTurn.filter { !$0.isEmpty })
        var spans: [(message: Int, range: Range<Int>)] = []
        for message in assistants where chosen.contains(message) {
            for range in try finder.ranges(of: message) { spans.append((message, range)) }
        }
        return spans
    }

    /// The ranges of `{% generation %}` blocks that belong to the chosen messages.
    private func markedSpans(
        _ chosen: Set<Int>, _ assistants: [Int], takesAll: Bool
    ) throws(MartletError) -> [(message: Int, range: Range<Int>)] {
        guard !trace.lostGeneration else {
            throw unclear(
                "a {% generation %} block stands inside a macro's value, a 'set' block or a filter",
                fix: "write the assistant's text directly where the block is, not into a variable")
        }
        var spans: [(message: Int, range: Range<Int>)] = []
        for (i, range) in generationSpans.enumerated() {
            let segment = trace.segments.first { $0.range.contains(range.lowerBound) }
            if let message = segment?.message {
                if takesAll || chosen.contains(message) { spans.append((message, range)) }
            } else if generationSpans.count == assistants.count {
                if chosen.contains(assistants[i]) { spans.append((assistants[i], range)) }
            } else {
                throw unclear(
                    "the {% generation %} blocks stand outside a loop over the messages, and are not one per message",
                    fix: "put them into a '{% for message in messages %}' loop")
            }
        }
        return spans
    }
}

/// An error that says why the assistant's text cannot be told apart.
private func unclear(_ reason: String, message: Int? = nil, fix: String) -> MartletError {
    MartletError(
        "cannot tell which text the assistant wrote",
        in: message.map { "chat template, message \($0)" } ?? "chat template",
        because: reason, fix: fix)
}

/// Finds the assistant's text of a template that does not mark it.
private struct AssistantTextFinder {
    let rendering: Rendering
    let header: [UInt8]
    let endOfTurn: [[UInt8]]
    let bytes: [UInt8]

    init(rendering: Rendering, header: String, endOfTurn: [String]) {
        self.rendering = rendering
        self.header = Array(header.utf8)
        self.endOfTurn = endOfTurn.map { Array($0.utf8) }
        bytes = Array(rendering.text.utf8)
    }

    private let remedy =
        "put {% generation %} and {% endgeneration %} around the assistant's text in a copy of the template"

    func ranges(of message: Int) throws(MartletError) -> [Range<Int>] {
        let segments = rendering.trace.segments.filter { $0.message == message && !isSpace($0.range) }
        guard let first = segments.first, let last = segments.last else {
            guard isEmpty(message) else {
                throw unclear(
                    "the template wrote nothing while a loop over the messages was at this one", message: message,
                    fix: remedy)
            }
            return []
        }
        guard segments.allSatisfy({ $0.pass == first.pass }) else {
            throw unclear("the template writes this message in more than one place", message: message, fix: remedy)
        }
        try checkContent(message, segments.map(\.range))
        var ranges = segments.map(\.range)
        let start = try textStart(first.range, message)
        ranges[0] = start..<max(start, first.range.upperBound)
        let end = textEnd(ranges[ranges.count - 1].lowerBound..<last.range.upperBound)
        ranges[ranges.count - 1] = ranges[ranges.count - 1].lowerBound..<end
        return ranges.filter { !$0.isEmpty }
    }

    // MARK: checks

    private func isSpace(_ range: Range<Int>) -> Bool {
        bytes[range].allSatisfy { $0 == 0x20 || $0 >= 0x09 && $0 <= 0x0D }
    }

    /// Whether the message has nothing to show.
    private func isEmpty(_ message: Int) -> Bool {
        let message = rendering.messages[message]
        let hasText =
            message["content"]?.string.map { !$0.stripped().isEmpty } ?? !(message["content"]?.array ?? []).isEmpty
        return !hasText && (message["tool_calls"]?.array ?? []).isEmpty
    }

    /// The text of the message's content that every template shows: what follows the reasoning.
    private func shownContent(_ message: Int) -> String? {
        guard let content = rendering.messages[message]["content"]?.string else { return nil }
        let shown = (content.pieces(around: "</think>").last ?? "").stripped()
        return shown.isEmpty ? nil : shown
    }

    /// Refuses a template that writes a message's content outside the loop.
    private func checkContent(_ message: Int, _ ranges: [Range<Int>]) throws(MartletError) {
        guard let shown = shownContent(message) else { return }
        let isInside = ranges.contains { rendering.text.part($0).firstOffset(of: shown) != nil }
        guard !isInside else { return }
        var outside: [UInt8] = []
        var from = 0
        for segment in rendering.trace.segments {
            outside += bytes[from..<segment.range.lowerBound] + [0]
            from = segment.range.upperBound
        }
        outside += bytes[from...]
        guard String(decoding: outside, as: UTF8.self).firstOffset(of: shown) == nil else {
            throw unclear(
                "the template writes the content outside its loop over the messages", message: message, fix: remedy)
        }
    }

    // MARK: the start

    /// Where the assistant's own text starts in its first segment.
    private func textStart(_ range: Range<Int>, _ message: Int) throws(MartletError) -> Int {
        var start = range.lowerBound
        var shared = sharedHeader(bytes[range])
        let isSpaced = header.first.map { $0 != 0x20 && $0 != 0x0A } ?? false
        if shared == 0, isSpaced {
            let skipped = bytes[range].prefix { $0 == 0x20 || $0 == 0x0A }.count
            let later = sharedHeader(bytes[(start + skipped)..<range.upperBound])
            if later > 0 { (start, shared) = (start + skipped, later) }
        }
        guard shared == 0 else { return start + shared }
        try checkNoHeader(range, message)
        return start
    }

    /// How much of the header stands at the start of `turn`.
    private func sharedHeader(_ turn: ArraySlice<UInt8>) -> Int {
        sharedPrefix(header, turn)
    }

    /// A turn that starts without the header must start with what the assistant wrote.
    private func checkNoHeader(_ range: Range<Int>, _ message: Int) throws(MartletError) {
        let turn = rendering.text.part(range)
        let content = shownContent(message).flatMap { turn.firstOffset(of: $0) } ?? turn.utf8.count
        let lead = turn.part(0..<content).pieces(around: "<tool_call")[0].part(0..<64).lowercased()
        guard lead.firstOffset(of: "assistant") == nil,
            lead.firstOffset(of: "model") == nil || !lead.hasText(prefix: "<")
        else {
            throw unclear(
                "the turn starts with \(pythonQuoted(turn.part(0..<min(content, 40)))), which is not the generation prompt "
                    + pythonQuoted(String(decoding: header, as: UTF8.self)), message: message, fix: remedy)
        }
    }

    // MARK: the end

    /// Where the turn ends, given what was written from the start of its text on.
    private func textEnd(_ range: Range<Int>) -> Int {
        var trimmed = range.upperBound
        while trimmed > range.lowerBound, isSpace(trimmed - 1..<trimmed) { trimmed -= 1 }
        for token in endOfTurn where bytes[range.lowerBound..<trimmed].suffix(token.count).elementsEqual(token) {
            return trimmed
        }
        guard trimmed == range.upperBound, trimmed > range.lowerBound else { return trimmed }
        for token in endOfTurn where bytes[trimmed...].starts(with: token) { return trimmed + token.count }
        return trimmed
    }
}

/// How many bytes of `header` stand at the start of `turn`; unless it is all of it, cut back to the end of a line, tag
/// or label.
func sharedPrefix(_ header: [UInt8], _ turn: ArraySlice<UInt8>) -> Int {
    var count = 0
    for (a, b) in zip(header, turn) {
        guard a == b else { break }
        count += 1
    }
    if count == header.count { return count }
    while count > 0, !"\n>]:".utf8.contains(header[count - 1]) { count -= 1 }
    return count
}

extension ChatTemplate {
    /// What `addsGenerationPrompt` appends to a conversation: the header of an assistant's turn, found with a probe.
    ///
    /// It depends on the template and on variables such as `enable_thinking`, not on the conversation: compute it once.
    package func generationPrompt(
        tools: JSON? = nil, variables: JSONObject = [:], now: TemplateDate = .now()
    ) throws(MartletError) -> String {
        let probe: [JSON] = [["role": "user", "content": "probe"]]
        let with: Rendering
        do throws(MartletError) {
            with = try render(messages: probe, tools: tools, addsGenerationPrompt: true, variables: variables, now: now)
        } catch { throw error.at("a probe with one user message, for the generation prompt") }
        let whole = Array(with.text.utf8)
        let plain: Rendering
        do throws(MartletError) {
            plain = try render(messages: probe, tools: tools, variables: variables, now: now)
        } catch {
            // A template may refuse to end with the user's turn: then the prompt is what follows that turn.
            let start = with.messageSpans.last?.range.upperBound ?? whole.count
            return String(decoding: whole[start...], as: UTF8.self)
        }
        return String(decoding: whole[sharedPrefix(Array(plain.text.utf8), whole[...])...], as: UTF8.self)
    }
}
