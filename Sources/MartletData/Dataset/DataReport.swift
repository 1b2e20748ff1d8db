package import MartletCore

/// What was read, what was made of it, and what was left out.
package struct DataReport: Sendable, Equatable {
    /// One file.
    package struct File: Sendable, Equatable {
        package var path: String
        /// "JSON Lines", "CSV", ...
        package var kind: String
        package var isCompressed: Bool
        package var format: DatasetFormat
        /// Whether the format was told by the first row, not set.
        package var isFormatDetected: Bool
        package var rowCount: Int
        package var badRowCount = 0
        package var exampleCount = 0
    }

    package var files: [File] = []
    /// What a folder held besides data files.
    package var ignoredPaths: [String] = []
    /// Examples to train on, and their tokens.
    package var exampleCount = 0
    package var tokenCount = 0
    package var trainedTokenCount = 0
    package var longestExample = 0
    package var maxLength = 0
    /// Examples that lost their end to `maxLength`, were left out for it, and were divided for it.
    package var truncatedCount = 0
    package var droppedCount = 0
    package var splitCount = 0
    /// Examples left out because no token of them would be trained.
    package var emptyMaskCount = 0
    /// Bad rows left out, by problem.
    package var badRowCounts: [String: Int] = [:]
    /// The first few bad rows.
    package var badRowSamples: [MartletError] = []
    /// Other things worth knowing.
    package var notes: [String] = []

    package var badRowCount: Int { badRowCounts.values.reduce(0, +) }

    static let sampleLimit = 5

    mutating func countBadRow(_ error: MartletError, file: Int) {
        badRowCounts[error.problem, default: 0] += 1
        files[file].badRowCount += 1
        if badRowSamples.count < DataReport.sampleLimit { badRowSamples.append(error) }
    }

    /// The report in lines, as printed before training.
    package var lines: [String] {
        var lines = files.map { file in
            "\(file.path): \(file.kind)\(file.isCompressed ? " (gzip)" : ""), format \(file.format.rawValue)"
                + "\(file.isFormatDetected ? " (by its columns)" : ""), \(file.rowCount) rows,"
                + " \(file.exampleCount) examples"
        }
        let share = tokenCount > 0 ? 100 * trainedTokenCount / tokenCount : 0
        lines.append(
            "\(exampleCount) examples, \(tokenCount) tokens, \(trainedTokenCount) of them trained (\(share)%);"
                + " the longest has \(longestExample)")
        if truncatedCount > 0 { lines.append("\(truncatedCount) examples were cut to max_length \(maxLength)") }
        if splitCount > 0 { lines.append("\(splitCount) texts were split into pieces of max_length \(maxLength)") }
        if droppedCount > 0 {
            lines.append("\(droppedCount) examples were left out: longer than max_length \(maxLength)")
        }
        if emptyMaskCount > 0 { lines.append("\(emptyMaskCount) examples were left out: nothing in them is trained") }
        for (problem, count) in badRowCounts.sorted(by: { ($1.value, $0.key) < ($0.value, $1.key) }) {
            lines.append("\(count) bad rows were skipped: \(problem)")
        }
        for sample in badRowSamples {
            lines.append("  \(sample.location ?? ""): \(sample.problem)\(sample.reason.map { " (\($0))" } ?? "")")
        }
        lines += ignoredPaths.map { "\($0) was ignored: not a data file" }
        return lines + notes
    }
}
