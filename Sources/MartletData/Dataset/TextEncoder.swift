package import MartletCore

/// What the dataset needs of a tokenizer.
package protocol TextEncoder: Sendable {
    var bosID: Int32? { get }
    var eosID: Int32? { get }
    /// The token ids of `text`, and of each the bytes (UTF-8) of `text` it stands for; an id that stands for none (an
    /// added special token) has an empty range.
    func encodeWithOffsets(
        _ text: String, addsSpecialTokens: Bool
    ) throws(MartletError) -> (ids: [Int32], ranges: [Range<Int>])
    func decode(_ ids: [Int32], skipsSpecialTokens: Bool) -> String
}

/// Which assistant messages a renderer should locate.
package enum AssistantSpans: Sendable { case none, all, last }

/// A conversation as the model's template writes it.
package struct RenderedConversation: Sendable, Equatable {
    package var text: String
    /// UTF-8 byte ranges of the assistant messages in order, one a message, each with its end-of-turn token.
    package var assistantSpans: [Range<Int>]

    package init(text: String, assistantSpans: [Range<Int>]) {
        self.text = text
        self.assistantSpans = assistantSpans
    }
}

/// What the dataset needs of a chat template.
package protocol ConversationRenderer: Sendable {
    /// Renders a whole conversation, without a generation prompt. `variables` are the row's own template variables.
    func render(
        messages: [JSON], tools: JSON?, variables: JSONObject, spans: AssistantSpans
    ) throws(MartletError) -> RenderedConversation
}
