internal import MartletCore

/// A text generated before and after the training.
package struct ReportSample: Sendable, Equatable {
    package var prompt: String
    package var before: String
    package var after: String

    package init(prompt: String, before: String, after: String) {
        self.prompt = prompt
        self.before = before
        self.after = after
    }
}

/// Everything the report shows.
struct ReportContent {
    typealias Row = TrainingOverview.Row

    var title: String
    var subtitle: String
    /// Headline numbers.
    var tiles: [Row]
    /// Rows of metrics.jsonl.
    var metrics: [JSON]
    var load: LoadWindow
    var memory: [Row]
    var trainable: TrainableSet
    var data: [Row]
    var facts: [Row]
    var samples: [ReportSample]
    var notes: [String]
    var recipe: String

    /// The curve of one number over the steps.
    func curve(_ key: String) -> [(x: Double, y: Double)] {
        metrics.compactMap { row in
            guard let step = row["step"]?.number, let value = row[key]?.number else { return nil }
            return (step, value)
        }
    }

    /// Over the steps, one number a sparse layer.
    func layers(_ key: String) -> [(step: Int, values: [Double])] {
        metrics.compactMap { row in
            guard let step = row["step"]?.integer, let values = row[key]?.array else { return nil }
            return (step, values.compactMap(\.number))
        }
    }
}
