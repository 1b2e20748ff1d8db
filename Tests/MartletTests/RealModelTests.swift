import Martlet
import MartletCore
import MartletData
import MartletModel
import MartletTestSupport
import Testing

/// The whole way: checkpoint, dataset, plan, model, loop, export.
@Suite struct RealModelTests {
    @Test func everyMethodLearns() throws {
        let changes: [(ModelConfiguration, (inout Recipe) -> Void)] = [
            (TinyRun.sparse, { _ in }), (TinyRun.dense, { _ in }),
            (TinyRun.sparse, { $0.method = .full }), (TinyRun.sparse, { ($0.method, $0.optim) = (.full, .adamw8Bit) }),
            (
                TinyRun.sparse,
                {
                    $0.trainRouter = true; $0.routerAuxLossCoef = 0.01; $0.routerZLossCoef = 0.001
                }
            ),
            (
                TinyRun.sparse,
                {
                    $0.targetModules = ["experts"]; $0.loraDropout = 0.1; $0.export = [.fused, .perExpert, .merged]
                }
            ),
        ]
        for (configuration, change) in changes {
            let tiny = try TinyRun(configuration)
            let run = try tiny.run(
                tiny.recipe {
                    change(&$0); $0.maxSteps = 14; $0.learningRate = 0.02
                })
            let losses = run.steps.map(\.loss)
            #expect(losses.last ?? 9 < 0.8 * losses[0])
            #expect(run.result.exports.count >= 1 && run.result.exports.allSatisfy(FileSystem.exists))
            #expect(run.checks.last?.waitingCount == 0)
            #expect(run.steps.last?.expertLoadMaxOverMean.count == (configuration.experts == nil ? 0 : 2))
        }
    }

    /// Nearly the same way down, with a quarter of the state.
    @Test func momentsInEightBitsLearnAsWell() throws {
        let tiny = try TinyRun()
        let runs = try Recipe.OptimizerType.allCases.map { optim in
            try tiny.run(tiny.recipe(optim.rawValue) { ($0.optim, $0.maxSteps) = (optim, 40) })
        }
        let losses = runs.map { $0.steps.suffix(5).reduce(0) { $0 + $1.loss } / 5 }
        #expect(losses[0] < 0.8 * (runs[0].steps.first?.loss ?? 0))
        #expect(abs(losses[1] - losses[0]) < 0.03 * losses[0] && losses[1] != losses[0], "\(losses)")
    }

    @Test(arguments: Recipe.OptimizerType.allCases)
    func resumedEqualsUninterrupted(_ optim: Recipe.OptimizerType) throws {
        let tiny = try TinyRun()
        func change(_ recipe: inout Recipe) {
            recipe.optim = optim
            (recipe.evalFraction, recipe.evalSteps, recipe.loadBestModelAtEnd) = (0.2, 3, true)
            (recipe.loraDropout, recipe.trainRouter, recipe.export) = (0.2, true, [.merged])
        }
        try tiny.run(tiny.recipe("whole", change))
        for stopAt in [2, 5] {
            let recipe = tiny.recipe("cut\(stopAt)", change)
            let first = try tiny.run(recipe) { event in
                if case .step(let row) = event, row.step == stopAt { .stop } else { .proceed }
            }
            #expect(first.result.end == .stopped && first.result.step == stopAt)
            #expect(try tiny.run(recipe).result.end == .completed)
            for file in [
                "checkpoint-9/parameters.safetensors", "checkpoint-9/optimizer.safetensors", "merged/model.safetensors",
            ] {
                let whole = try FileSystem.read(tiny.folder.file("whole/\(file)"))
                #expect(
                    try FileSystem.read(tiny.folder.file("cut\(stopAt)/\(file)")) == whole, "\(file) after \(stopAt)")
            }
        }
    }

    /// A chat template that writes the date writes the day on which the run began.
    @Test func aRunMayBeResumedOnAnotherDay() throws {
        let tiny = try TinyRun()
        try AtomicFile.write(
            (["messages": [["role": "user", "content": "a"], ["role": "assistant", "content": "b"]]] as JSON).text(),
            to: tiny.folder.file("chat.jsonl"))
        let recipe = tiny.recipe { $0.dataset = [tiny.folder.file("chat.jsonl")] }
        func run(on date: TemplateDate, stopAt: Int = 99) throws -> ToyRun {
            let template = try ChatTemplate(
                source: "{{ strftime_now('%d.%m.') }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
                    + "{% if add_generation_prompt %}[assistant]{% endif %}")
            return try tiny.run(recipe, renderer: TemplateRenderer(template: template, endOfTurn: [], now: date)) {
                if case .step(let row) = $0, row.step == stopAt { .stop } else { .proceed }
            }
        }
        let monday = TemplateDate(year: 2026, month: 3, day: 2, hour: 23, minute: 59, second: 58)
        #expect(try run(on: monday, stopAt: 2).result.end == .stopped)
        #expect(recipe.startDate == monday)
        let error = errorOf { _ = try run(on: TemplateDate(year: 2026, month: 3, day: 3)) }
        #expect(error?.problem == "the dataset has changed since the checkpoint was written")
        #expect(try run(on: recipe.startDate).result.end == .completed)
        var other = recipe
        other.outputDir = tiny.folder.file("other")
        #expect(other.startDate != monday)
    }

    /// The report shows prompts of the data before and after, as many as fit into a step; the run does not change by it.
    @Test func theReportShowsWhatTheModelWrites() throws {
        let tiny = try TinyRun()
        func change(_ recipe: inout Recipe) { (recipe.evalFraction, recipe.maxSteps) = (0.2, 12) }
        let shown = tiny.recipe("shown", change)
        try tiny.run(shown) { if case .step(let row) = $0, row.step == 5 { .stop } else { .proceed } }
        try tiny.run(shown)
        let hidden = tiny.recipe("hidden") {
            change(&$0)
            $0.samplePrompts = 0
        }
        try tiny.run(hidden)
        func text(_ file: String) throws -> String {
            String(decoding: try FileSystem.read(tiny.folder.file(file)), as: UTF8.self)
        }
        let samples = try #require(try FileSystem.readJSON(tiny.folder.file("shown/samples.json")).array)
        let report = try text("shown/report.html")
        #expect(samples.count == 2 && report.contains(">Before and after<"))
        for sample in samples {
            #expect(report.contains(">\(try #require(sample["prompt"]?.string))<"))
            #expect(report.contains(">\(try #require(sample["before"]?.string))<"))
        }
        #expect(try !text("hidden/report.html").contains(">Before and after<"))
        let adapters = try ["shown", "hidden"].map {
            try FileSystem.read(tiny.folder.file("\($0)/adapter/adapter_model.safetensors"))
        }
        #expect(adapters[0] == adapters[1])
    }

    @Test func theSameAdapterForTheSameSeed() throws {
        let tiny = try TinyRun()
        let files = try ["a", "b", "c"].map { name in
            try tiny.run(tiny.recipe(name) { $0.seed = name == "c" ? 2 : 1 })
            return try FileSystem.read(tiny.folder.file("\(name)/adapter/adapter_model.safetensors"))
        }
        #expect(files[0] == files[1] && files[0] != files[2])
    }

    @Test func whatTheModelRefuses() throws {
        let sparse = try TinyRun(), dense = try TinyRun(TinyRun.dense)
        let cases: [(TinyRun, (inout Recipe) -> Void, String)] = [
            (sparse, { $0.targetModules = ["q_projj"] }, "adapter target 'q_projj' matches no layer"),
            (
                sparse, { $0.targetModules = ["gate_proj"] },
                "the experts' gate_proj and up_proj cannot be adapted apart"
            ),
            (dense, { $0.targetModules = ["experts"] }, "adapter target 'experts' matches no layer"),
            (dense, { $0.trainRouter = true }, "'train_router' has no effect"),
            (sparse, { $0.maxLength = 257 }, "max_length is more than the model can take"),
            (sparse, { $0.columns = ["txt": "a"] }, "no format has a column 'txt'"),
            (sparse, { $0.memoryLimit = 1000 }, "a step of"),
            (sparse, { ($0.deterministic, $0.device) = (false, .cpu) }, "'deterministic: false' has no effect"),
        ]
        for (tiny, change, problem) in cases {
            let error = try #require(errorOf { try tiny.run(tiny.recipe("x", change)) })
            #expect(error.problem.hasPrefix(problem))
        }
    }

    @Test func thePlanIsKnownBefore() throws {
        let tiny = try TinyRun()
        let plan = try Assembly(recipe: tiny.recipe()).plan(Assembly.ModelText(encoder: Characters(), renderer: nil))
        #expect(plan.memory.count > 4 && plan.arenaByteCount > 0 && plan.totalSteps > 0)
    }
}
