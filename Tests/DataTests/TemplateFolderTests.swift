import Foundation
import MartletCore
import Testing

@testable import MartletData

/// Reading a template from a model's folder.
@Suite struct TemplateFolderTests {
    private let chat: [JSON] = [["role": "user", "content": "hi"]]

    private func withFolder(_ files: [String: String], _ body: (String) throws -> Void) throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(
            "martlet-template-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: folder) }
        for (name, text) in files {
            let file = folder.appendingPathComponent(name)
            try FileManager.default.createDirectory(
                at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
            try Data(text.utf8).write(to: file)
        }
        try body(folder.path)
    }

    @Test func fileBeatsConfig() throws {
        let config =
            #"{"chat_template": "config", "bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null}"#
        try withFolder([
            "tokenizer_config.json": config,
            "chat_template.jinja": "{{ bos_token }}file{{ eos_token }}{{ pad_token is defined }}",
        ]) { folder throws in
            #expect(try ChatTemplate(folder: folder).render(messages: chat).text == "<s>file</s>False")
        }
        try withFolder(["tokenizer_config.json": config]) { folder throws in
            #expect(try ChatTemplate(folder: folder).render(messages: chat).text == "config")
        }
    }

    @Test func picksFromNamedTemplates() throws {
        let config =
            #"{"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T{{ tools | length }}"}, {"name": "rag", "template": "R"}]}"#
        try withFolder(["tokenizer_config.json": config]) { folder throws in
            #expect(try ChatTemplate(folder: folder).render(messages: chat).text == "D")
            #expect(try ChatTemplate(folder: folder).render(messages: chat, tools: [["type": "function"]]).text == "T1")
            #expect(try ChatTemplate(folder: folder, name: "rag").render(messages: chat).text == "R")
            let error = #expect(throws: MartletError.self) { try ChatTemplate(folder: folder, name: "rug") }
            #expect(error?.remedy?.contains("'rag'") == true)
        }
    }

    @Test func saysThatThereIsNone() throws {
        try withFolder(["tokenizer_config.json": "{}"]) { folder throws in
            let error = #expect(throws: MartletError.self) { try ChatTemplate(folder: folder) }
            #expect(error?.problem == "the model has no chat template" && error?.remedy != nil)
        }
        #expect(throws: MartletError.self) { try ChatTemplate(folder: "/nowhere/at/all") }
        try withFolder(["tokenizer_config.json": "{"]) { folder throws in
            let error = #expect(throws: MartletError.self) { try ChatTemplate(folder: folder) }
            #expect(error?.location?.contains("tokenizer_config.json") == true)
        }
        try withFolder(["chat_template.jinja": "a\n{% if %}"]) { folder throws in
            let error = #expect(throws: MartletError.self) { try ChatTemplate(folder: folder) }
            #expect(error?.location?.hasSuffix("chat_template.jinja, line 2") == true)
        }
    }

    @Test func refusesMessagesThatAreNone() throws {
        let template = try ChatTemplate(source: "{{ messages }}")
        #expect(throws: MartletError.self) { try template.render(messages: JSON.string("hi")) }
        #expect(throws: MartletError.self) { try template.render(messages: [1]) }
    }

    /// The folders of small checkpoints with a chat_cases.json that MARTLET_TINY_MODELS names.
    @Test(.enabled(if: ProcessInfo.processInfo.environment["MARTLET_TINY_MODELS"] != nil))
    func rendersTheCasesOfSmallCheckpoints() throws {
        let root = URL(fileURLWithPath: ProcessInfo.processInfo.environment["MARTLET_TINY_MODELS"] ?? "")
        var count = 0
        for folder in try FileManager.default.contentsOfDirectory(at: root, includingPropertiesForKeys: nil) {
            guard let data = try? Data(contentsOf: folder.appendingPathComponent("chat_cases.json")) else { continue }
            let template = try ChatTemplate(folder: folder.path)
            for record in try JSON(parsing: String(decoding: data, as: UTF8.self)).array ?? [] {
                count += 1
                let date = (record["date"]?.string ?? "2026-01-01").split(separator: "-").compactMap { Int($0) }
                let result = Result {
                    try template.render(
                        messages: record["messages"] ?? [], tools: record["tools"],
                        addsGenerationPrompt: record["add_generation_prompt"]?.bool ?? false,
                        variables: record["kwargs"]?.object ?? [:],
                        now: TemplateDate(year: date[0], month: date[1], day: date[2])
                    ).text
                }
                let text = try? result.get()
                #expect(
                    text == record["rendered"]?.string, "\(folder.lastPathComponent) \(record["name"]?.string ?? "")")
                #expect((record["error"] != nil) == (text == nil))
            }
        }
        #expect(count >= 20)
    }
}
