import ArgumentParser
import Martlet

struct EvalCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "eval", abstract: "Measure loss and perplexity of a model on a dataset.",
        discussion: """
            The same rows, chat template and loss mask as in training, without dropout:

              martlet eval /models/Qwen3-0.6B data/test.jsonl --adapter runs/first/adapter
            """)

    @Argument(help: "Folder of the model.") var model: String
    @Argument(help: "Dataset files or folders.") var dataset: [String]
    @Option(help: "Folder of an adapter to apply.") var adapter: String?
    @Option(help: "The most tokens of an example; longer ones are cut.") var maxLength = 2048
    @Option(help: "Tokens that count: assistant, last_assistant, all.") var lossOn: String?
    @OptionGroup var compute: ComputeOptions
    @Flag(help: "Print one JSON object.") var json = false

    func run() throws {
        var settings = Evaluation.Settings()
        settings.maxLength = maxLength
        settings.loss = lossOn
        settings.compute = compute.value
        let result = try Evaluation.run(model: model, dataset: dataset, adapter: adapter, settings: settings) { share in
            Terminal.status("\(Int(share * 100))%")
        }
        Terminal.clearStatus()
        Terminal.say(json ? result.json : result.description)
    }
}
