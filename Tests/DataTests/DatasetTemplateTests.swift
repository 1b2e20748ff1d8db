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
        TemplateRenderer(template: try ChatTemplate(source: DatasetTemplateTests.source), endOfTurn: ["<|im_end|>"])
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

    /// A template that refuses a conversation of one user message has no generation prompt; it is asked for one only
    /// where the assistant's text cannot be told apart without.
    @Test func theGenerationPromptIsMadeOnlyWhereItIsNeeded() throws {
        let strict = "{%- if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        let blocks =
            strict + """
                {%- for m in messages %}{{ m.role + ':' }}
                {%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}
                {%- endfor %}
                """
        let row =
            #"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"a"},"#
            + #"{"role":"assistant","content":"b"}]}"#
        let path = scratch.file("a.jsonl", row)
        func renderer(_ source: String) throws -> TemplateRenderer {
            TemplateRenderer(template: try ChatTemplate(source: source), endOfTurn: [])
        }
        #expect(try marked(try load(path, renderer: try renderer(blocks))) == "system:suser:aassistant:«b»")
        let plain = strict + DatasetTemplateTests.source
        #expect(try load(path, renderer: try renderer(plain)) { $0.loss = .all }.count == 1)
        let error = #expect(throws: MartletError.self) { try load(path, renderer: try renderer(plain)) }
        #expect(error?.reason?.contains("no system message") == true)
    }

    @Test func whetherATemplateWritesTheDateIsKnown() throws {
        #expect(try renderer().writtenDate == nil)
        let date = TemplateDate(year: 2026, month: 3, day: 7, hour: 9, minute: 5)
        let dated = TemplateRenderer(
            template: try ChatTemplate(source: "{{ strftime_now('%d %b') }}"), endOfTurn: [], now: date)
        #expect(dated.writtenDate == date && date.description == "2026-03-07 09:05:00")
        #expect(TemplateDate("2026-03-07 09:05:00") == date)
        for text in ["", "2026-03-07", "2026-13-07 09:05:00"] {
            #expect(TemplateDate(text) == nil)
        }
    }
}
