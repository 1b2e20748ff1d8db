import MartletCore

/// Turns examples into tokens with a loss mask.
///
/// - A conversation goes through the chat template, whose text holds every special token: none is added. The mask covers
///   the assistant messages with their end-of-turn tokens; a token belongs to a span if it shares a byte with it.
/// - A prompt and completion are a user and an assistant message where there is a template. Where there is none, they are
///   laid end to end as they stand (for Alpaca with an empty line between), then the end-of-text token, which is trained.
/// - Raw text is trained whole, with an end-of-text token after each document.
struct ExampleTokenizer: Sendable {
    let encoder: any TextEncoder
    let renderer: (any ConversationRenderer)?
    let loss: LossScope

    func tokenize(_ example: Example) throws(MartletError) -> TokenizedExample {
        switch example {
        case .conversation(let conversation): return try tokenize(conversation)
        case .completion(let prompt, let completion, let separator):
            guard renderer != nil else { return try plain(prompt + separator, completion) }
            let user: JSON = ["role": "user", "content": .string(prompt)]
            let assistant: JSON = ["role": "assistant", "content": .string(completion)]
            return try tokenize(Conversation(messages: [user, assistant], firstTrained: 1))
        case .text(let text, let starts, let ends):
            return try plain("", text, starts: starts, ends: ends, trainsAll: true)
        }
    }

    private func tokenize(_ conversation: Conversation) throws(MartletError) -> TokenizedExample {
        guard let renderer else { throw ExampleTokenizer.noTemplate }
        let trained: TrainedTurns =
            switch loss {
            case .all: .none
            case .lastAssistant: .last
            case .assistant: .from(conversation.firstTrained)
            }
        let rendered = try renderer.render(
            messages: conversation.messages, tools: conversation.tools, variables: conversation.variables,
            trained: trained)
        let (ids, ranges) = try encoder.encodeWithOffsets(rendered.text, addsSpecialTokens: false)
        let isTrained = loss == .all ? ids.map { _ in true } : ExampleTokenizer.mask(ranges, rendered.trainedSpans)
        return TokenizedExample(tokens: ids, isTrained: isTrained)
    }

    static let noTemplate = MartletError(
        "the model has no chat template", because: "the data holds conversations",
        fix: "use the instruct version of the model, or give the data as prompt/completion or text")

    /// Whether each token shares a byte with a span. Both lists ascend.
    static func mask(_ tokens: [Range<Int>], _ spans: [Range<Int>]) -> [Bool] {
        var span = 0
        return tokens.map { token in
            while span < spans.count, spans[span].upperBound <= token.lowerBound { span += 1 }
            return span < spans.count && token.overlaps(spans[span])
        }
    }

    /// Text without a template: the tokenizer's own start token if it has one, the text, an end-of-text token.
    private func plain(
        _ prompt: String, _ completion: String, starts: Bool = true, ends: Bool = true, trainsAll: Bool = false
    ) throws(MartletError) -> TokenizedExample {
        let promptEnd = prompt.utf8.count
        var (ids, ranges) = try encoder.encodeWithOffsets(prompt + completion, addsSpecialTokens: starts)
        if let bos = encoder.bosID, ids.count >= 2, ids[0] == bos, ids[1] == bos {
            ids.removeFirst()
            ranges.removeFirst()
        }
        let everything = trainsAll || loss == .all
        var isTrained = ranges.map { everything || $0.upperBound > max(promptEnd, $0.lowerBound) }
        if let eos = encoder.eosID {
            // A tokenizer that ends its texts itself has done so already, even inside a document.
            if starts, ids.last == eos, ranges.last?.isEmpty == true {
                ids.removeLast()
                isTrained.removeLast()
            }
            if ends {
                ids.append(eos)
                isTrained.append(true)
            }
        }
        return TokenizedExample(tokens: ids, isTrained: isTrained)
    }
}
