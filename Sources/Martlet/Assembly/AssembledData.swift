internal import MartletCore
internal import MartletData

/// The recipe's datasets as steps.
struct AssembledData {
    let training: StepLoader
    let validation: StepLoader?
    /// What became of the files' rows.
    private(set) var rows: [TrainingOverview.Row]
    /// The most tokens that a step can need.
    let tokenCount: Int
    let longestExample: Int
    /// Where the report takes its prompts from: what is not trained on, if there is something.
    let shown: ExampleSet

    init(_ recipe: Recipe, _ text: Assembly.ModelText) throws(MartletError) {
        let settings = try AssembledData.settings(recipe)
        let dataset = try TokenizedDataset(
            paths: recipe.dataset, settings: settings, encoder: text.encoder, renderer: text.renderer)
        try AssembledData.requireExamples(dataset, recipe, "dataset")
        var train = ExampleSet(all: dataset), evaluation: ExampleSet?
        rows = AssembledData.rows(dataset.report, "training")
        var reports = [dataset.report]
        if recipe.evalFraction > 0 {
            let split = try train.split(evaluationFraction: recipe.evalFraction, seed: UInt64(recipe.seed))
            (train, evaluation) = (split.train, split.evaluation)
            rows.append(.init("held out for validation", "\(split.evaluation.count) examples"))
        } else if !recipe.evalDataset.isEmpty {
            let other = try TokenizedDataset(
                paths: recipe.evalDataset, settings: settings, encoder: text.encoder, renderer: text.renderer)
            try AssembledData.requireExamples(other, recipe, "eval_dataset")
            evaluation = ExampleSet(all: other)
            rows += AssembledData.rows(other.report, "validation")
            reports.append(other.report)
        }
        shown = evaluation ?? train
        var steps = StepSettings(
            batchSize: recipe.perDeviceTrainBatchSize, gradientAccumulation: recipe.gradientAccumulationSteps,
            packs: recipe.packing, shuffles: true, seed: UInt64(recipe.seed))
        training = try StepLoader(examples: train, settings: steps)
        steps.shuffles = false
        if let evaluation {
            validation = try StepLoader(examples: evaluation, settings: steps)
        } else {
            validation = nil
        }
        tokenCount = reports.map(\.tokenCount).max() ?? 0
        longestExample = reports.map(\.longestExample).max() ?? 0
        let fill = fixed(100 * training.fill, 1)
        rows.append(
            .init(
                "rows of a step", "\(training.rowsPerStep), filled to \(fill) %",
                note: "\(training.stepsPerEpoch) steps an epoch"))
    }

    private static func settings(_ recipe: Recipe) throws(MartletError) -> DatasetSettings {
        var settings = DatasetSettings(maxLength: recipe.maxLength)
        settings.format =
            switch recipe.datasetFormat {
            case .auto: nil
            case .chat: .chat
            case .sharegpt: .shareGPT
            case .alpaca: .alpaca
            case .text: .text
            case .promptCompletion: .promptCompletion
            }
        do throws(MartletError) { settings.columns = try ColumnNames(recipe.columns) } catch {
            throw error.at(recipe.places["columns"] ?? "recipe, key \"columns\"")
        }
        if recipe.gives("loss_on") {
            settings.loss =
                switch recipe.lossOn {
                case .assistant: .assistant
                case .all: .all
                case .last: .lastAssistant
                }
        }
        settings.skipsBadRows = recipe.skipBadRows
        return settings
    }

    private static func requireExamples(
        _ dataset: TokenizedDataset, _ recipe: Recipe, _ key: String
    ) throws(MartletError) {
        guard dataset.count == 0 else { return }
        throw recipe.refusal(
            key, "no example is left to use", because: dataset.report.lines.joined(separator: "; "),
            fix: "check the files, 'max_length' and 'loss_on'; `martlet inspect` shows what becomes of a row")
    }

    private static func rows(_ report: DataReport, _ purpose: String) -> [TrainingOverview.Row] {
        var rows = report.files.map { file in
            TrainingOverview.Row(
                FileSystem.name(of: file.path), "\(file.rowCount) rows, \(file.exampleCount) examples",
                note: "\(file.kind), format \(file.format.rawValue)\(file.isFormatDetected ? ", detected" : "")")
        }
        rows.append(
            .init(
                "tokens for \(purpose)", "\(report.tokenCount), \(report.trainedTokenCount) of them count",
                note: "the longest example has \(report.longestExample)"))
        let left = [
            (report.truncatedCount, "cut to max_length"), (report.splitCount, "texts split at max_length"),
            (report.droppedCount, "left out, too long"), (report.emptyMaskCount, "left out, nothing in them counts"),
            (report.badRowCount, "bad rows skipped"),
        ]
        for (count, what) in left where count > 0 { rows.append(.init(what, String(count))) }
        return rows + report.notes.map { .init("note", $0) }
    }
}
