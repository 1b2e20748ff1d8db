package import MartletCore

extension Tokenizer: TextEncoder {}

/// A model's chat template as the dataset uses it.
package struct TemplateRenderer: ConversationRenderer {
    private let template: ChatTemplate
    private let endOfTurn: [String]
    private let variables: JSONObject
    private let now: TemplateDate
    /// The header of an assistant's turn, for rows without tools and variables of their own.
    private let header: String

    /// - Parameters:
    ///   - endOfTurn: The texts of the tokens that may end a turn: those of `eos_token` and of generation_config.json.
    ///   - variables: For every row; those of a row beat them.
    ///   - now: What templates that write the date write; a resumed run needs the date it started with.
    package init(
        template: ChatTemplate, endOfTurn: [String], variables: JSONObject = [:], now: TemplateDate = .now()
    ) throws(MartletError) {
        self.template = template
        self.endOfTurn = endOfTurn
        self.variables = variables
        self.now = now
        header = try template.generationPrompt(variables: variables, now: now)
    }

    package func render(
        messages: [JSON], tools: JSON?, variables: JSONObject, trained: TrainedTurns
    ) throws(MartletError) -> RenderedConversation {
        var merged = self.variables
        for (name, value) in variables { merged[name] = value }
        let rendering = try template.render(messages: messages, tools: tools, variables: merged, now: now)
        let turns: AssistantTurns
        switch trained {
        case .none: return RenderedConversation(text: rendering.text, trainedSpans: [])
        case .last: turns = .last
        case .from(let first): turns = first == 0 ? .all : .chosen(Set(messages.indices.filter { $0 >= first }))
        }
        let isPlain = tools == nil && variables.count == 0
        let header =
            isPlain ? self.header : try template.generationPrompt(tools: tools, variables: merged, now: now)
        let spans = try rendering.assistantSpans(turns, header: header, endOfTurn: endOfTurn)
        return RenderedConversation(text: rendering.text, trainedSpans: spans.map(\.range))
    }
}
