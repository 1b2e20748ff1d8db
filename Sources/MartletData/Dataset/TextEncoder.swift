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

/// Which assistant messages of a conversation are to be learned.
package enum TrainedTurns: Sendable, Equatable {
    /// None need be told apart.
    case none
    case last
    /// Those from message `index` on; 0 is all.
    case from(Int)
}

/// A conversation as the model's template writes it.
package struct RenderedConversation: Sendable, Equatable {
    package var text: String
    /// UTF-8 byte ranges of what the assistant wrote in the messages asked for, in order, with end-of-turn tokens.
    package var trainedSpans: [Range<Int>]

    package init(text: String, trainedSpans: [Range<Int>]) {
        self.text = text
        self.trainedSpans = trainedSpans
    }
}

/// What the dataset needs of a chat template.
package protocol ConversationRenderer: Sendable {
    /// Renders a whole conversation, without a generation prompt. `variables` are the row's own template variables.
    func render(
        messages: [JSON], tools: JSON?, variables: JSONObject, trained: TrainedTurns
    ) throws(MartletError) -> RenderedConversation
}
