import Martlet
import MartletCore
import MartletModel
import MartletTestSupport
import Testing

@Suite struct ReportTests {
    private func page(
        _ change: (inout Recipe) -> Void = { _ in }, _ parts: (ToyModel) -> Void = { _ in }
    ) throws -> String {
        let folder = try TemporaryFolder(), model = try ToyModel()
        parts(model)
        let recipe = toyRecipe(folder) {
            $0.evalDataset = ["<script>.jsonl"]
            $0.maxSteps = 30
            change(&$0)
        }
        try runToy(recipe, model: model, validation: ToySteps(stepsPerEpoch: 1))
        return String(decoding: try FileSystem.read(folder.file("run/report.html")), as: UTF8.self)
    }

    @Test func isSelfContained() throws {
        let html = try page()
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "<iframe"] {
            #expect(!html.contains(outside), "\(outside)")
        }
        #expect(html.contains("&lt;script&gt;.jsonl"))
        #expect(html.utf8.count < 200_000)
    }

    @Test func showsTheRun() throws {
        let html = try page()
        for title in [
            "Loss", "Learning rate", "Expert load", "Balance over time", "What is trained", "Memory", "Data", "Recipe",
        ] {
            #expect(html.contains(">\(title)<"), "\(title)")
        }
        #expect(html.contains("<b>30</b><span>steps of 30</span>"))
        #expect(html.contains("30 steps") || html.contains("last 30 steps"))
    }

    /// Tags that are opened are closed, in order.
    @Test func isWellFormed() throws {
        var open: [Substring] = [], rest = Substring(try page())
        while let start = rest.firstIndex(of: "<") {
            rest = rest[rest.index(after: start)...]
            let end = try #require(rest.firstIndex(of: ">"))
            let tag = rest[..<end]
            rest = rest[rest.index(after: end)...]
            if tag.hasPrefix("!") || tag.hasPrefix("meta") || tag.hasSuffix("/") { continue }
            let name = tag.drop { $0 == "/" }.prefix { $0 != " " }
            if tag.hasPrefix("/") { #expect(open.popLast() == name) } else { open.append(name) }
        }
        #expect(open.isEmpty)
    }

    @Test func aRunOfOneStep() throws {
        #expect(try page { $0.maxSteps = 1 }.contains("steps of 1"))
    }
}
