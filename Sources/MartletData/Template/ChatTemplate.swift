package import MartletCore

/// A model's chat template (Jinja2, as transformers runs it): turns messages into the text the model was trained on.
///
/// Parsed once, rendered any number of times, from any thread.
package struct ChatTemplate: Sendable {
    let program: TemplateProgram
    /// Another template that takes over when tools are given (`tool_use` in tokenizer_config.json).
    let toolProgram: TemplateProgram?
    /// `bos_token`, `eos_token` and so on.
    let specialTokens: JSONObject
    package var limits = TemplateLimits()
    /// Whether the date can come to stand in the text.
    package let readsClock: Bool

    /// Parses a template.
    package init(source: String) throws(MartletError) {
        try self.init(source: source, name: "chat template", toolSource: nil, specialTokens: [:])
    }

    init(source: String, name: String, toolSource: String?, specialTokens: JSONObject) throws(MartletError) {
        program = try TemplateParser.parse(source, name: name)
        if let toolSource {
            toolProgram = try TemplateParser.parse(toolSource, name: name + " \"tool_use\"")
        } else {
            toolProgram = nil
        }
        self.specialTokens = specialTokens
        readsClock = (source + (toolSource ?? "")).contains(TemplateFunction.strftimeNow.rawValue)
    }

    /// Renders a conversation.
    ///
    /// - Parameters:
    ///   - messages: Objects with "role", "content" and whatever else the template reads.
    ///   - tools: A list of function schemas, or nil.
    ///   - addsGenerationPrompt: Whether to end with the header of an assistant's turn.
    ///   - variables: Further variables of the template, such as `enable_thinking`; they beat the special tokens.
    ///   - now: The local time, for templates that write the date.
    package func render(
        messages: [JSON], tools: JSON? = nil, addsGenerationPrompt: Bool = false, variables: JSONObject = [:],
        now: TemplateDate = .now()
    ) throws(MartletError) -> Rendering {
        var conversation: [JSONObject] = []
        for (i, message) in messages.enumerated() {
            guard let object = message.object else {
                throw MartletError(
                    "a chat message is not an object", in: "message \(i)", because: "it is \(message.kind)",
                    fix: "give each message as {\"role\": ..., \"content\": ...}")
            }
            conversation.append(aliasingReasoning(object))
        }
        let tools = tools.flatMap { $0.isNull ? nil : $0 }
        var values: [(name: String, value: TemplateValue)] = []
        for (name, value) in specialTokens { values.append((name, TemplateValue(value))) }
        values.append(("messages", .messages(conversation)))
        values.append(("tools", tools.map { TemplateValue($0) } ?? .none))
        values.append(("documents", .none))
        values.append(("add_generation_prompt", .bool(addsGenerationPrompt)))
        for (name, value) in variables { values.append((name, TemplateValue(value))) }
        let program = tools != nil ? toolProgram ?? program : program
        let steps = limits.steps(for: conversation, [tools ?? .null, .object(variables)])
        return try TemplateInterpreter(program, variables: values, clock: now, limits: limits, steps: steps)
            .render(conversation)
    }

    /// Renders a conversation given as one JSON list.
    package func render(
        messages: JSON, tools: JSON? = nil, addsGenerationPrompt: Bool = false, variables: JSONObject = [:],
        now: TemplateDate = .now()
    ) throws(MartletError) -> Rendering {
        guard let list = messages.array else {
            throw MartletError(
                "the messages are not a list", because: "they are \(messages.kind)",
                fix: "give a conversation as [{\"role\": ..., \"content\": ...}, ...]")
        }
        return try render(
            messages: list, tools: tools, addsGenerationPrompt: addsGenerationPrompt, variables: variables, now: now)
    }

    /// Reasoning goes by three names; templates find it under `reasoning_content` and `thinking` whichever was used
    /// (as in transformers 5).
    private func aliasingReasoning(_ message: JSONObject) -> JSONObject {
        let names = ["reasoning_content", "thinking", "reasoning"]
        guard let reasoning = names.lazy.compactMap({ message[$0] }).first(where: { !$0.isNull }) else {
            return message
        }
        var aliased: JSONObject = ["thinking": reasoning]
        for (key, value) in message { aliased[key] = value }
        aliased["reasoning_content"] = reasoning
        return aliased
    }
}
