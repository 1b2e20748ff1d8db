internal import MartletCore
internal import MartletData
internal import MartletModel

/// The loss of a model on a dataset.
public struct Evaluation: Sendable, Equatable, CustomStringConvertible {
    /// Mean loss of a target, in nats.
    public var loss: Double
    /// Examples read.
    public var exampleCount: Int
    /// Tokens read.
    public var tokenCount: Int
    /// Tokens whose prediction counts in the loss.
    public var targetCount: Int
    /// Wall time of the passes, without loading.
    public var seconds: Double
    /// What became of the dataset's rows.
    public var dataReport: [String]

    /// e to the loss.
    public var perplexity: Double { loss.exponential }
    /// Tokens read in a second.
    public var tokensPerSecond: Double { seconds > 0 ? Double(tokenCount) / seconds : 0 }

    /// What to measure.
    public struct Settings: Sendable {
        /// The most tokens of an example; longer ones are cut.
        public var maxLength = 2048
        /// The tokens that count: `assistant`, `last_assistant` or `all`; nil: the assistant's, and all of raw text.
        public var loss: String?
        /// Where to compute.
        public var compute = Compute()

        /// The defaults.
        public init() {}
    }

    /// Measures the loss of a model folder, with an adapter if one is given, on dataset files.
    public static func run(
        model folder: String, dataset: [String], adapter: String? = nil, settings: Settings = Settings(),
        progress: (Double) -> Void = { _ in }
    ) throws(MartletError) -> Evaluation {
        let checkpoint = try Checkpoint(folder: folder)
        let text = try FolderText(folder: folder, checkpoint.configuration)
        let data = try dataset.tokenized(settings, text)
        let adapter = try adapter.map { (path) throws(MartletError) in
            try Adapter(folder: path, for: checkpoint.configuration)
        }
        let rows = max(1, 4096 / settings.maxLength)
        let use = Model.Use.loss(
            stepTokens: min(rows * settings.maxLength, data.report.tokenCount),
            length: max(data.report.longestExample, 2))
        let model = try Model.forInference(checkpoint, adapter: adapter, use, settings.compute)
        let steps = try StepLoader(
            examples: ExampleSet(all: data), settings: StepSettings(batchSize: rows, packs: true, shuffles: false))
        let watch = Stopwatch()
        var lossSum = 0.0, targets = 0, tokens = 0
        for index in 0..<steps.stepsPerEpoch {
            let step = try steps.step(index)
            let outcome = try model.evaluate(step)
            lossSum += outcome.lossSum
            targets += outcome.targetCount
            tokens += step.tokenCount
            progress(Double(index + 1) / Double(steps.stepsPerEpoch))
        }
        return Evaluation(
            loss: lossSum / Double(max(targets, 1)), exampleCount: data.count, tokenCount: tokens, targetCount: targets,
            seconds: watch.seconds, dataReport: data.report.lines)
    }

    /// The result for machines.
    public var json: String {
        let object: JSON = [
            "loss": .number(loss), "perplexity": .number(perplexity), "examples": .integer(exampleCount),
            "tokens": .integer(tokenCount), "target_tokens": .integer(targetCount), "seconds": .number(seconds),
            "tokens_per_second": .number(tokensPerSecond),
        ]
        return object.text()
    }

    /// The result for people.
    public var description: String {
        dataReport.joined(separator: "\n")
            + """

            loss        \(fixed(loss, 4)) nats a token
            perplexity  \(fixed(perplexity, 3))
            tokens      \(targetCount) counted of \(tokenCount) read, \(exampleCount) examples
            speed       \(fixed(tokensPerSecond, 0)) tokens/s, \(fixed(seconds, 1)) s
            """
    }
}

extension [String] {
    fileprivate func tokenized(
        _ settings: Evaluation.Settings, _ text: FolderText
    ) throws(MartletError) -> TokenizedDataset {
        var data = DatasetSettings(maxLength: settings.maxLength)
        if let name = settings.loss {
            guard let scope = LossScope(rawValue: name) else {
                throw MartletError(
                    "there is no loss '\(name)'", in: "--loss-on",
                    because: "known are \(LossScope.allCases.map(\.rawValue).joined(separator: ", "))",
                    fix: "give one of them")
            }
            data.loss = scope
        }
        return try TokenizedDataset(paths: self, settings: data, encoder: text.tokenizer, renderer: text.renderer)
    }
}
