package import MartletCore

/// What a row says, whatever format it came in.
package enum Example: Sendable, Equatable {
    case conversation(Conversation)
    /// A prompt and what should follow. `separator` stands between them where no chat template puts them together.
    case completion(prompt: String, completion: String, separator: String)
    /// Raw text; a piece from inside a document neither starts nor ends one.
    case text(String, startsDocument: Bool, endsDocument: Bool)
}

/// Messages as chat templates want them.
package struct Conversation: Sendable, Equatable {
    /// Objects with `role` and `content` (a string or null), and what else the row gave.
    package var messages: [JSON]
    package var tools: JSON?
    /// Variables of the chat template for this row (`chat_template_kwargs`).
    package var variables = JSONObject()
    /// The messages from this one on are what should be learned; those before it are the prompt.
    package var firstTrained = 0

    package init(messages: [JSON], tools: JSON? = nil, variables: JSONObject = JSONObject(), firstTrained: Int = 0) {
        self.messages = messages
        self.tools = tools
        self.variables = variables
        self.firstTrained = firstTrained
    }
}

/// One example as the model sees it.
package struct TokenizedExample: Sendable, Equatable {
    package var tokens: [Int32]
    /// Whether predicting the token counts in the loss. The first token is never predicted.
    package var isTrained: [Bool]

    package init(tokens: [Int32] = [], isTrained: [Bool] = []) {
        self.tokens = tokens
        self.isTrained = isTrained
    }

    /// How many predictions count.
    package var trainedCount: Int { isTrained.dropFirst().reduce(0) { $0 + ($1 ? 1 : 0) } }
}
