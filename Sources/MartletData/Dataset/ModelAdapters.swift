package import MartletCore
import Synchronization

extension Tokenizer: TextEncoder {}

/// A model's chat template as the dataset uses it.
package struct TemplateRenderer: ConversationRenderer {
    private let template: ChatTemplate
    private let endOfTurn: [String]
    private let variables: JSONObject
    private let now: TemplateDate
    private let header = Header()

    /// - Parameters:
    ///   - endOfTurn: The texts of the tokens that may end a turn: those of `eos_token` and of generation_config.json.
    ///   - variables: For every row; those of a row beat them.
    ///   - now: What templates that write the date write; a resumed run needs the date it started with.
    package init(
        template: ChatTemplate, endOfTurn: [String], variables: JSONObject = [:], now: TemplateDate = .now()
    ) {
        self.template = template
        self.endOfTurn = endOfTurn
        self.variables = variables
        self.now = now
    }

    /// The time that the template writes; nil if it writes none.
    package var writtenDate: TemplateDate? { template.readsClock ? now : nil }

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
        let header = rendering.hasGenerationBlocks ? "" : try generationPrompt(tools, variables, merged)
        let spans = try rendering.assistantSpans(turns, header: header, endOfTurn: endOfTurn)
        return RenderedConversation(text: rendering.text, trainedSpans: spans.map(\.range))
    }

    private func generationPrompt(
        _ tools: JSON?, _ variables: JSONObject, _ merged: JSONObject
    ) throws(MartletError) -> String {
        func make() throws(MartletError) -> String {
            try template.generationPrompt(tools: tools, variables: merged, now: now)
        }
        return tools == nil && variables.count == 0 ? try header.text(make) : try make()
    }

    /// The header of an assistant's turn, for rows without tools and variables of their own: made for the first of them.
    private final class Header: Sendable {
        private let known = Mutex<String?>(nil)

        func text(_ make: () throws(MartletError) -> String) throws(MartletError) -> String {
            try known.withLock { (known) throws(MartletError) in
                if let known { return known }
                let text = try make()
                known = text
                return text
            }
        }
    }
}
