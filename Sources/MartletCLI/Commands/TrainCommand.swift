import ArgumentParser
import Martlet

struct RecipeOptions: ParsableArguments {
    @Argument(help: "The recipe, a YAML file.") var recipe: String
    @Option(
        name: .customLong("set"),
        help: ArgumentHelp("Override a key of the recipe. May be repeated.", valueName: "key=value"))
    var overrides: [String] = []
    @OptionGroup var gpu: GPUOptions

    func read() throws -> FineTune {
        let recipe = try Recipe(contentsOf: recipe, overrides: overrides)
        if recipe.device == .cpu { try gpu.refuse() }
        return try FineTune(recipe: recipe)
    }
}

struct TrainCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "train", abstract: "Train as a recipe says, export the result, and check it.",
        discussion: """
            A recipe names a model, data, and whatever should differ from the defaults ('martlet recipe' lists all keys):

              model: /models/Qwen3-30B-A3B
              dataset: [data/train.jsonl]
              output_dir: runs/first

              martlet train recipe.yaml --set lora_r=8 --set max_steps=100

            What is trained, the memory table and the data are told first. Ctrl-C finishes the step, saves and leaves; the \
            same command goes on from there. A second Ctrl-C leaves at once. Exit code 130 if it was stopped.
            """)

    @OptionGroup var options: RecipeOptions
    @Flag(help: "Print every event as a JSON object on a line of its own.") var json = false

    func run() throws {
        let run = try options.read()
        Interrupts.watch()
        var printer = EventPrinter(isJSON: json)
        let result = try run.run { event in
            printer.print(event)
            return Interrupts.stop.isOn ? .stop : .proceed
        }
        if result.end == .stopped {
            if !json { Terminal.complain("stopped; the same command goes on from \(result.checkpoint ?? "the start")") }
            throw ExitCode(130)
        }
    }
}

struct PlanCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "plan", abstract: "Tell what a recipe would train and what memory it needs, without training.",
        discussion: """
            Reads the dataset, but none of the model's weights. What the table says is what a run allocates.

              martlet plan recipe.yaml --set memory_limit=12GiB
            """)

    @OptionGroup var options: RecipeOptions
    @Flag(help: "Print one JSON object.") var json = false

    func run() throws {
        let plan = try options.read().plan()
        Terminal.say(json ? plan.json : plan.description)
    }
}

/// Prints a run's events: a line that moves on a terminal, a line now and then elsewhere.
struct EventPrinter {
    let isJSON: Bool
    private var progress = TrainingProgress(totalSteps: 0)
    private var totalSteps = 0
    private var secondsSinceLine = Double.infinity

    init(isJSON: Bool) { self.isJSON = isJSON }

    mutating func print(_ event: TrainingEvent) {
        guard !isJSON else { return Terminal.say(event.json) }
        switch event {
        case .started(let overview):
            totalSteps = overview.totalSteps
            progress = TrainingProgress(totalSteps: totalSteps)
            say(overview.description + "\n")
        case .state(let state): if state == .validating || state == .exporting { Terminal.status(state.rawValue) }
        case .step(let metrics): step(metrics)
        case .gradientsChecked(let check): say(check.description)
        case .evaluated(let metrics): say(metrics.description)
        case .saved(let folder, _): say("saved \(folder)")
        case .note(let text): say("note: \(text)")
        case .finished(let result): say(result.description)
        }
    }

    private mutating func step(_ metrics: StepMetrics) {
        let line = progress.line(metrics)
        Terminal.status(line)
        secondsSinceLine += metrics.stepSeconds
        let isLast = metrics.step == totalSteps
        guard isLast || (!Terminal.errorIsInteractive && secondsSinceLine >= 5) else { return }
        secondsSinceLine = 0
        say(line)
    }

    private func say(_ text: String) {
        Terminal.clearStatus()
        Terminal.say(text)
    }
}
