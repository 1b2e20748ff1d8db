internal import MartletCore

/// How far a run is and how long it still takes, in a line.
public struct TrainingProgress: Sendable {
    private let totalSteps: Int
    /// Seconds of a step, the recent ones counting more.
    private var pace: Double?

    /// The progress of a run of this many steps.
    public init(totalSteps: Int) { self.totalSteps = totalSteps }

    /// Takes in a step and describes where the run is.
    public mutating func line(_ metrics: StepMetrics) -> String {
        pace = pace.map { 0.9 * $0 + 0.1 * metrics.stepSeconds } ?? metrics.stepSeconds
        let left = Double(totalSteps - metrics.step) * (pace ?? 0)
        let parts = [
            "step \(metrics.step)/\(totalSteps)", "loss \(fixed(metrics.loss, 4))",
            "\(fixed(metrics.tokensPerSecond, 0)) tokens/s", "\(formatDuration(left)) left",
            formatBytes(metrics.peakMemoryByteCount),
        ]
        return parts.joined(separator: "  ")
    }
}

/// 3725 as "1h02m", 65 as "1m05s".
func formatDuration(_ seconds: Double) -> String {
    guard seconds.isFinite, seconds < 1e9 else { return "?" }
    let whole = Int(seconds.rounded())
    func two(_ n: Int) -> String { n < 10 ? "0\(n)" : "\(n)" }
    if whole < 60 { return "\(whole)s" }
    if whole < 3600 { return "\(whole / 60)m\(two(whole % 60))s" }
    return "\(whole / 3600)h\(two(whole % 3600 / 60))m"
}

extension EvaluationMetrics: CustomStringConvertible {
    /// The validation in a line.
    public var description: String {
        "validation after step \(step): loss \(fixed(loss, 4)), perplexity \(fixed(perplexity, 2))"
            + (isBest ? ", the best so far" : "")
    }
}

extension TrainingOverview: CustomStringConvertible {
    /// Everything in a few blocks of lines.
    public var description: String {
        func table(_ rows: [Row], right: Set<Int> = []) -> [String] {
            aligned(rows.map { [$0.name, $0.value, $0.note ?? ""] }, rightAligned: right)
        }
        let steps = "\(totalSteps) steps, \(stepsPerEpoch) a pass over the dataset"
        let resumed = resumedFrom.map { ["continues after step \(doneSteps) from \($0)"] } ?? []
        return (table(data) + [""] + table(memory, right: [1]) + [""] + trainable.lines + [steps] + resumed)
            .joined(separator: "\n")
    }
}

extension TrainingResult: CustomStringConvertible {
    /// How the run ended and what it left.
    public var description: String {
        var lines = ["\(end.rawValue) after step \(step)" + (lastLoss.map { ", loss \(fixed($0, 4))" } ?? "")]
        if let best { lines.append("best validation  \(fixed(best.loss, 4)) after step \(best.step)") }
        lines += exports.map { "written, read again and as meant  \($0)" }
        if let checkpoint { lines.append("checkpoint  \(checkpoint)") }
        return (lines + ["report  \(report)"]).joined(separator: "\n")
    }
}
