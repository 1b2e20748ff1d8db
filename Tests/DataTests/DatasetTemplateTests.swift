import MartletCore
import MartletData
import Testing

/// The dataset with a real chat template.
@Suite struct DatasetTemplateTests {
    static let source = """
        {%- if tools %}{{- 'tools: ' ~ tools | tojson ~ '\\n' }}{%- endif %}
        {%- for message in messages %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.thinking is defined %}{{- '<think>' + message.thinking + '</think>' }}{%- endif %}
        {{- message.content + '<|im_end|>\\n' }}
        {%- endfor %}
        {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
        """
    let scratch = Scratch()

    func renderer() throws -> TemplateRenderer {
        try TemplateRenderer(template: try ChatTemplate(source: DatasetTemplateTests.source), endOfTurn: ["<|im_end|>"])
    }

    @Test(arguments: [LossScope.assistant, .lastAssistant, .all])
    func agreesWithTheHandWrittenRenderer(loss: LossScope) throws {
        let rows = [
            #"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"bé"},"#
                + #"{"role":"user","content":"c"},{"role":"assistant","content":"d","thinking":"t"}]}"#,
            #"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"tools":[{"name":"f"}]}"#,
        ]
        let path = scratch.file("a.jsonl", rows.joined(separator: "\n"))
        let real = try load(path, renderer: try renderer()) { $0.loss = loss }
        let fake = try load(path) { $0.loss = loss }
        #expect(try marked(real, 0) == marked(fake, 0))
        #expect(try marked(real, 1) == marked(fake, 1))
        #expect(try marked(real, 1).hasSuffix(loss == .all ? "\n»" : "assistant\n«b<|im_end|>»\n"))
    }

    @Test func theCompletionOfMessageListsIsToldFromThePrompt() throws {
        let row =
            #"{"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},"#
            + #"{"role":"user","content":"c"}],"completion":[{"role":"assistant","content":"d"}]}"#
        let text = try marked(try load(scratch.file("a.jsonl", row), renderer: try renderer()))
        #expect(text.contains("assistant\nb<|im_end|>\n") && text.hasSuffix("assistant\n«d<|im_end|>»\n"))
    }
}
