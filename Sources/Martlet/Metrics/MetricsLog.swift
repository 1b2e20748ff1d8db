internal import MartletCore

/// metrics.jsonl: one JSON object a line, a line a logged step or validation.
final class MetricsLog {
    static let fileName = "metrics.jsonl"
    private let file: AppendFile

    /// Opens the log of a run that continues after `step`: rows of later steps, and a torn last line, are cut off.
    init(folder: String, keepingThrough step: Int) throws(MartletError) {
        let path = FileSystem.join(folder, MetricsLog.fileName)
        let kept = step > 0 && FileSystem.exists(path) ? try MetricsLog.lines(of: path, through: step) : []
        try AtomicFile.write(kept.map { $0 + "\n" }.joined(), to: path)
        file = try AppendFile(path)
    }

    func append(_ row: JSON) throws(MartletError) { try file.append(Array((row.text() + "\n").utf8)) }

    private static func lines(of path: String, through step: Int) throws(MartletError) -> [String] {
        var kept: [String] = []
        for line in String(decoding: try FileSystem.read(path), as: UTF8.self).split(separator: "\n") {
            guard let row = try? JSON(parsing: String(line)), let rowStep = row["step"]?.integer, rowStep <= step else {
                break
            }
            kept.append(String(line))
        }
        return kept
    }

    /// All rows, for the report.
    static func rows(in folder: String) throws(MartletError) -> [JSON] {
        let text = String(decoding: try FileSystem.read(FileSystem.join(folder, fileName)), as: UTF8.self)
        return text.split(separator: "\n").compactMap { try? JSON(parsing: String($0)) }
    }
}
