import Foundation
import MartletCore
import Testing

@testable import MartletData

/// The assistant's text in renderings of templates that do not mark it.
@Suite struct TemplateSpanTests {
    let goldens: TemplateGoldens

    init() throws { goldens = try TemplateGoldens.shared.get() }

    private func template(_ family: String) throws -> ChatTemplate {
        try ChatTemplate(source: #require(goldens.root["templates"]?[family]?.string))
    }

    private func conversation(_ name: String) throws -> [JSON] {
        try #require(goldens.root["conversations"]?[name]?.array)
    }

    private func texts(
        _ template: ChatTemplate, _ messages: [JSON], _ turns: AssistantTurns = .all, end: [String],
        tools: JSON? = nil, variables: JSONObject = [:]
    ) throws -> [String] {
        let date = TemplateDate(year: 2026, month: 3, day: 7)
        let rendering = try template.render(messages: messages, tools: tools, variables: variables, now: date)
        let header = try template.generationPrompt(tools: tools, variables: variables, now: date)
        return try rendering.assistantSpans(turns, header: header, endOfTurn: end).map { rendering.text.part($0.range) }
    }

    /// What stands between each `start` and the next `end`, which is included.
    private func between(_ text: String, _ start: String, _ end: String) -> [String] {
        text.pieces(around: start).dropFirst().map { $0.pieces(around: end)[0] + end }
    }

    @Test(arguments: ["system", "think", "thinking", "tool", "tools", "call_last", "null_content", "assistant_first"])
    func findsTurnsOfChatML(name: String) throws {
        for family in ["qwen3", "qwen3_coder"] where !(family == "qwen3_coder" && name == "assistant_first") {
            let template = try template(family), messages = try conversation(name)
            let rendered = try template.render(messages: messages).text
            let expected = between(rendered, "<|im_start|>assistant\n", "<|im_end|>")
            #expect(!expected.isEmpty)
            #expect(try texts(template, messages, end: ["<|im_end|>"]) == expected, "\(family)")
            #expect(try texts(template, messages, .last, end: ["<|im_end|>"]) == expected.suffix(1), "\(family)")
        }
    }

    /// The prompt of `enable_thinking=false` holds an empty block of thoughts, which only the last turn starts with.
    @Test func leavesThinkingPrefixToThePrompt() throws {
        let messages = try conversation("system")
        let found = try texts(template("qwen3"), messages, end: ["<|im_end|>"], variables: ["enable_thinking": false])
        #expect(
            found == ["Hello!<|im_end|>", "Yes.\n<|im_end|>"] || found == ["Hello!<|im_end|>", "  Yes.\n<|im_end|>"])
    }

    @Test func findsTurnsOfGemma() throws {
        let found = try texts(template("gemma"), conversation("think"), end: ["<end_of_turn>"])
        #expect(found == ["<think>\nold thought\n</think>\n\nFirst.<end_of_turn>", "Second.<end_of_turn>"])
    }

    /// GLM writes no end of turn: the token of the next role, where it follows, is what ends it.
    @Test func findsTurnsOfGLM() throws {
        let end = ["<|endoftext|>", "<|user|>", "<|observation|>"]
        let found = try texts(template("glm"), conversation("system"), end: end)
        #expect(found == ["\n<think></think>\nHello!<|user|>", "\n<think></think>\nYes."])
        let tool = try texts(template("glm"), conversation("tool"), end: end)
        #expect(
            tool.count == 2 && tool[0].hasSuffix("</tool_call><|observation|>") && tool[1].hasSuffix("Hello!<|user|>"))
    }

    @Test func findsTurnsOfHarmony() throws {
        let end = ["<|return|>", "<|call|>", "<|end|>"]
        let found = try texts(template("harmony"), conversation("think"), end: end)
        #expect(
            found == [
                "<|channel|>final<|message|><think>\nold thought\n</think>\n\nFirst.<|end|>",
                "<|channel|>analysis<|message|>new thought<|end|><|start|>assistant<|channel|>final<|message|>Second.<|return|>",
            ])
        let tool = try texts(template("harmony"), conversation("tool"), end: end)
        #expect(
            tool[0]
                == " to=functions.weather<|channel|>commentary json<|message|>{\"city\": \"Köln\", \"days\": 2}<|call|>"
        )
    }

    /// After a tool's result DeepSeek goes on without a header.
    @Test func findsTurnsOfDeepSeek() throws {
        let end = ["<｜end▁of▁sentence｜>"]
        let found = try texts(template("deepseek"), conversation("tool.text"), end: end)
        #expect(found.count == 2)
        #expect(found[0].hasPrefix("<｜tool▁calls▁begin｜>") && found[0].hasSuffix(end[0]))
        #expect(found[1] == "Hello!" + end[0])
    }

    // MARK: single features

    private let chat: [JSON] = [
        ["role": "user", "content": "Q1"], ["role": "assistant", "content": "A1"], ["role": "user", "content": "Q2"],
        ["role": "assistant", "content": "A2"],
    ]

    private func spans(_ source: String, _ messages: [JSON], _ turns: AssistantTurns = .all) throws -> [String] {
        try texts(ChatTemplate(source: source), messages, turns, end: ["</s>"])
    }

    @Test func followsCopiesOfTheMessages() throws {
        let loops = [
            "{% for m in messages %}", "{% for m in messages[0:] %}",
            "{% set rest = messages | list %}{% for m in rest %}",
            "{% set ns = namespace(l=messages) %}{% for m in ns.l %}", "{% for m in messages if m.role != 'x' %}",
            "{% for m in messages | selectattr('content') %}", "{% for m in [messages[0]] + messages[1:] %}",
            "{% for m in messages | rejectattr('role', 'eq', 'x') | list %}", "{% for m in messages[::-1] | reverse %}",
            "{% set ns = namespace(l=[]) %}{% for x in messages %}{% set ns.l = ns.l + [dict(x, n=1)] %}{% endfor %}{% for m in ns.l %}",
            "{% set ns = namespace(l=[]) %}{% for x in messages %}{% set ns.l = ns.l + [(loop.index0, x)] %}{% endfor %}{% for i, m in ns.l %}",
        ]
        for loop in loops {
            let source =
                loop
                + "<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
            #expect(try spans(source, chat) == ["A1</s>", "A2</s>"], "\(loop)")
            #expect(try spans(source, chat, .last) == ["A2</s>"], "\(loop)")
            #expect(try spans(source, chat, .chosen([0, 1])) == ["A1</s>"], "\(loop)")
        }
    }

    @Test func looksIntoMacrosThatWriteInPlace() throws {
        let source =
            "{% macro all(ms) %}{% for m in ms %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% endmacro %}"
            + "{{ all(messages) }}{% if add_generation_prompt %}<assistant>{% endif %}"
        #expect(try spans(source, chat) == ["A1</s>", "A2</s>"])
    }

    /// An inner loop ahead writes the tools' results; an inner loop back only looks something up.
    @Test func tellsInnerLoopsApart() throws {
        let messages: [JSON] = [
            ["role": "user", "content": "Q"], ["role": "assistant", "content": "A"], ["role": "tool", "content": "R1"],
            ["role": "tool", "content": "R2"], ["role": "assistant", "content": "B"],
        ]
        let ahead =
            "{% for m in messages %}{% if m.role != 'tool' %}<{{ m.role }}>{{ m.content }}</s>{% for t in messages[loop.index:] %}"
            + "{% if t.role != 'tool' %}{% break %}{% endif %}[{{ t.content }}]{% endfor %}{% endif %}{% endfor %}"
            + "{% if add_generation_prompt %}<assistant>{% endif %}"
        #expect(try spans(ahead, messages) == ["A</s>", "B</s>"])
        let back =
            "{% for m in messages %}<{{ m.role }}>{% if m.role == 'tool' %}{% for t in messages %}"
            + "{% if t.content == 'A' %}to {{ t.role }}{% endif %}{% endfor %}{% endif %}{{ m.content }}</s>{% endfor %}"
            + "{% if add_generation_prompt %}<assistant>{% endif %}"
        #expect(try spans(back, messages) == ["A</s>", "B</s>"])
    }

    @Test func readsGenerationBlocks() throws {
        let source =
            "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>\n"
            + "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        #expect(try spans(source, chat) == ["A1</s>\n", "A2</s>\n"])
        #expect(try spans(source, chat, .last) == ["A2</s>\n"])
    }

    @Test(arguments: [
        // Outside any loop over the messages.
        "{{ messages[1].content }}</s>{{ messages[3].content }}</s>",
        "{% for i in range(messages | length) %}<{{ messages[i].role }}>{{ messages[i].content }}</s>{% endfor %}",
        "{% set text %}{% for m in messages %}{{ m.content }}</s>{% endfor %}{% endset %}{{ text }}",
        "{% for m in messages %}<{{ m.role }}>{% endfor %}{{ messages[1].content ~ messages[3].content }}",
        // Twice.
        "{% for m in messages %}{{ m.content }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}",
        // With a header that is no generation prompt.
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}",
        // Marked, but into a variable.
        "{% for m in messages %}{% set x %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}{{ x }}{% endfor %}",
    ])
    func refusesWhatItCannotTell(source: String) {
        #expect {
            let rendering = try ChatTemplate(source: source).render(messages: chat)
            _ = try rendering.assistantSpans(.all, header: "<assistant>", endOfTurn: ["</s>"])
        } throws: { error in
            guard let error = error as? MartletError else { return false }
            return error.problem == "cannot tell which text the assistant wrote" && error.remedy != nil
                && error.reason != nil
        }
    }

    @Test func skipsEmptyMessages() throws {
        var messages = chat
        messages[1] = ["role": "assistant", "content": ""]
        let source =
            "{% for m in messages %}{% if m.content %}<{{ m.role }}>{{ m.content }}</s>{% endif %}{% endfor %}"
            + "{% if add_generation_prompt %}<assistant>{% endif %}"
        #expect(try spans(source, messages) == ["A2</s>"])
    }
}
