internal import MartletCore
internal import MartletData

/// A model's chat template as the dataset uses it: text, and where in it the assistant speaks.
struct ChatRenderer: ConversationRenderer {
    private let template: ChatTemplate
    /// The texts of the tokens that can end a turn.
    private let endOfTurn: [String]
    /// The header of an assistant's turn where a row brings neither tools nor variables.
    private let header: String

    init(_ template: ChatTemplate, endOfTurn: [String]) throws(MartletError) {
        self.template = template
        self.endOfTurn = endOfTurn
        header = try template.generationPrompt()
    }

    func render(
        messages: [JSON], tools: JSON?, variables: JSONObject, spans: AssistantSpans
    ) throws(MartletError) -> RenderedConversation {
        let rendering = try template.render(messages: messages, tools: tools, variables: variables)
        guard spans != .none else { return RenderedConversation(text: rendering.text, assistantSpans: []) }
        let isPlain = tools == nil && variables.count == 0
        let header = isPlain ? header : try template.generationPrompt(tools: tools, variables: variables)
        let found = try rendering.assistantSpans(spans == .all ? .all : .last, header: header, endOfTurn: endOfTurn)
        return RenderedConversation(text: rendering.text, assistantSpans: found.map(\.range))
    }
}
