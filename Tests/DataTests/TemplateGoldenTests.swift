import Foundation
import MartletCore
import Testing

@testable import MartletData

/// What transformers' own renderer makes of the same templates (tools/goldens/templates.py).
struct TemplateGoldens: Sendable {
    static let shared = Result { try TemplateGoldens() }

    let root: JSON
    var cases: [JSON] { root["cases"]?.array ?? [] }

    /// The committed cases, or those of the file named by MARTLET_TEMPLATE_CASES (a longer fuzz run).
    init() throws {
        let path = ProcessInfo.processInfo.environment["MARTLET_TEMPLATE_CASES"]
        let url =
            try path.map { URL(fileURLWithPath: $0) }
            ?? #require(Bundle.module.url(forResource: "cases", withExtension: "json", subdirectory: "TemplateGoldens"))
        root = try JSON(parsing: String(decoding: Data(contentsOf: url), as: UTF8.self))
    }

    func shared(_ value: JSON?, _ key: String) -> JSON? {
        guard let name = value?.string, name.first == "@" else { return value }
        return root[key]?[String(name.dropFirst())] ?? root[key]
    }

    func variables(of record: JSON) -> JSONObject {
        let context = root["context"]?.object ?? [:]
        if record["template_variables"]?.bool == true { return context }
        var variables = record["variables"]?.object ?? [:]
        for name in record["template_variables"]?.array ?? [] {
            if let name = name.string { variables[name] = context[name] }
        }
        return variables
    }

    func render(_ record: JSON) throws -> Rendering {
        let source = try #require(shared(record["template"], "templates")?.string)
        return try ChatTemplate(source: source).render(
            messages: shared(record["messages"], "conversations") ?? [], tools: shared(record["tools"], "tools"),
            addsGenerationPrompt: record["prompt"]?.bool ?? false, variables: variables(of: record),
            now: TemplateDate(year: 2026, month: 3, day: 7, hour: 14, minute: 5, second: 9))
    }
}

@Suite struct TemplateGoldenTests {
    @Test func rendersWhatTransformersRenders() throws {
        let goldens = try TemplateGoldens.shared.get()
        #expect(goldens.cases.count > 500)
        for record in goldens.cases { check(record, goldens) }
    }

    private func check(_ record: JSON, _ goldens: TemplateGoldens) {
        let name = "\(record["name"]?.string ?? "") \(record["template"]?.string?.prefix(200) ?? "")"
        do {
            let rendering = try goldens.render(record)
            guard let expected = record["expected"]?.string else {
                Issue.record(
                    "\(name): gave \(rendering.text.debugDescription), wanted \(record["error"]?.string ?? "")")
                return
            }
            #expect(
                Array(rendering.text.utf8) == Array(expected.utf8),
                "\(name)\n \(rendering.text.debugDescription)\n \(expected.debugDescription)")
            checkSpans(record, rendering, name)
        } catch let error as MartletError {
            let reason = record["error"]?.string
            #expect(reason != nil, "\(name): \(error), wanted \(record["expected"]?.string?.debugDescription ?? "")")
            #expect(error.remedy != nil && error.location != nil, "\(name): \(error)")
            if let reason, reason.hasPrefix("TemplateError: ") {
                #expect(error.reason == String(reason.dropFirst(15)), "\(name)")
            }
        } catch {
            Issue.record("\(name): \(error)")
        }
    }

    /// The spans of generation blocks, as characters.
    private func checkSpans(_ record: JSON, _ rendering: Rendering, _ name: String) {
        let bytes = Array(rendering.text.utf8)
        let spans = rendering.generationSpans.map { span in
            [
                String(decoding: bytes[..<span.lowerBound], as: UTF8.self),
                String(decoding: bytes[..<span.upperBound], as: UTF8.self),
            ]
            .map { JSON.integer($0.unicodeScalars.count) }
        }
        #expect(JSON.array(spans.map { .array($0) }) == record["spans"] ?? [], "\(name)")
    }
}
