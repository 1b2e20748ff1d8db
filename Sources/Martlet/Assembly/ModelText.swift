package import MartletCore
package import MartletData
internal import MartletModel

extension Assembly.ModelText {
    /// The tokenizer and the chat template of a model's folder.
    package init(folder: String) throws(MartletError) {
        let tokenizer = try Tokenizer(folder: folder)
        let renderer = try Self.hasTemplate(folder) ? TemplateRenderer(folder: folder, tokenizer) : nil
        self.init(encoder: tokenizer, renderer: renderer)
    }

    /// Base models have no template, which is no error; a template that cannot be read is one.
    private static func hasTemplate(_ folder: String) throws(MartletError) -> Bool {
        if FileSystem.exists(FileSystem.join(folder, "chat_template.jinja")) { return true }
        let config = FileSystem.join(folder, "tokenizer_config.json")
        guard FileSystem.exists(config), let template = try FileSystem.readJSON(config)["chat_template"] else { return false }
        return !template.isNull
    }
}

extension Tokenizer: TextEncoder {}

/// A chat template that also tells where the assistant's text is.
struct TemplateRenderer: ConversationRenderer {
    private let template: ChatTemplate
    private let endOfTurn: [String]
    /// The date that templates write, the same for the whole dataset.
    private let now = TemplateDate.now()
    /// The header of an assistant's turn, without variables of a row's own; not needed unless spans are asked for.
    private let header: Result<String, MartletError>

    init(folder: String, _ tokenizer: Tokenizer) throws(MartletError) {
        let template = try ChatTemplate(folder: folder), now = now
        self.template = template
        endOfTurn = try TemplateRenderer.endOfTurn(folder, tokenizer)
        header = Result { () throws(MartletError) in try template.generationPrompt(now: now) }
    }

    /// The tokens that end a turn: those that end a generation, by config.json, generation_config.json and the tokenizer.
    private static func endOfTurn(_ folder: String, _ tokenizer: Tokenizer) throws(MartletError) -> [String] {
        var tokens = [tokenizer.specialTokens["eos_token"]].compactMap { $0 }
        for name in ["generation_config.json", "config.json"] {
            let path = FileSystem.join(folder, name)
            guard FileSystem.exists(path), let value = try FileSystem.readJSON(path)["eos_token_id"] else { continue }
            let ids = (value.array ?? [value]).compactMap(\.integer)
            tokens += ids.compactMap { Int32(exactly: $0).flatMap(tokenizer.token(of:)) }
        }
        return tokens.reduce(into: []) { if !$0.contains($1) { $0.append($1) } }
    }

    func render(
        messages: [JSON], tools: JSON?, variables: JSONObject, spans: AssistantSpans
    ) throws(MartletError) -> RenderedConversation {
        let rendering = try template.render(messages: messages, tools: tools, variables: variables, now: now)
        guard spans != .none else { return RenderedConversation(text: rendering.text, assistantSpans: []) }
        let header =
            variables.count == 0
            ? try self.header.get() : try template.generationPrompt(tools: tools, variables: variables, now: now)
        let found = try rendering.assistantSpans(spans == .last ? .last : .all, header: header, endOfTurn: endOfTurn)
        return RenderedConversation(text: rendering.text, assistantSpans: found.map(\.range))
    }
}
