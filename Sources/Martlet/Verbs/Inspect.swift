internal import MartletCore
internal import MartletData
internal import MartletModel

/// What a path holds, told for people and for machines.
public struct Inspection: Sendable, CustomStringConvertible {
    /// The report for people.
    public var description: String
    /// The report for machines.
    public var json: String
    /// What is wrong with it; empty if nothing is.
    public var problems: [String]
    /// Rows of a dataset, decoded.
    public var rows: [Row] = []

    /// A row of a dataset as the model sees it.
    public struct Row: Sendable {
        /// "file, line N".
        public var location: String
        /// Tokens of the row.
        public var tokenCount: Int
        /// Those whose prediction counts in the loss.
        public var trainedCount: Int
        /// Its text in stretches that are trained or not.
        public var pieces: [(text: String, isTrained: Bool)]
    }

    /// How to look.
    public struct Settings: Sendable {
        /// The model folder that an adapter or a dataset belongs to.
        public var model: String?
        /// Rows of a dataset to decode.
        public var rowCount = 3
        /// The most tokens of a row.
        public var maxLength = 2048

        /// The defaults.
        public init() {}
    }

    /// Looks at a model folder, an adapter folder or a dataset, whichever the path holds.
    public static func of(_ path: String, settings: Settings = Settings()) throws(MartletError) -> Inspection {
        if FileSystem.exists(FileSystem.join(path, "adapter_config.json")) {
            return try inspectAdapter(path, model: settings.model)
        }
        if FileSystem.exists(FileSystem.join(path, "config.json")) { return try inspectCheckpoint(path) }
        return try inspectDataset(path, settings)
    }
}

// MARK: Datasets

private func inspectDataset(_ path: String, _ settings: Inspection.Settings) throws(MartletError) -> Inspection {
    guard FileSystem.kind(of: path) != nil else {
        throw MartletError(
            "there is nothing to inspect", in: path, because: "nothing stands at that path", fix: "check the path")
    }
    guard let folder = settings.model else {
        throw MartletError(
            "a dataset needs a model to be read with", in: path,
            because:
                "it is neither a model (config.json) nor an adapter (adapter_config.json), and rows become tokens by "
                + "a model's tokenizer and chat template",
            fix: "give --model FOLDER")
    }
    let text = try FolderText(folder: folder, try Checkpoint.configuration(of: folder))
    let dataset = try TokenizedDataset(
        paths: [path], settings: DatasetSettings(maxLength: settings.maxLength), encoder: text.tokenizer,
        renderer: text.renderer)
    var rows: [Inspection.Row] = []
    for index in 0..<min(max(0, settings.rowCount), dataset.count) {
        let row = try dataset.inspect(index)
        rows.append(
            Inspection.Row(
                location: row.location, tokenCount: row.tokenCount, trainedCount: row.trainedCount,
                pieces: row.pieces.map { ($0.text, $0.isTrained) }))
    }
    let report = dataset.report
    let json: JSON = [
        "kind": "dataset", "examples": .integer(report.exampleCount), "tokens": .integer(report.tokenCount),
        "trained_tokens": .integer(report.trainedTokenCount), "longest": .integer(report.longestExample),
        "truncated": .integer(report.truncatedCount), "dropped": .integer(report.droppedCount),
        "bad_rows": .integer(report.badRowCount), "report": .array(report.lines.map(JSON.string)),
        "rows": .array(rows.map(\.jsonValue)),
    ]
    return Inspection(description: report.lines.joined(separator: "\n"), json: json.text(), problems: [], rows: rows)
}

extension Inspection.Row {
    fileprivate var jsonValue: JSON {
        [
            "location": .string(location), "tokens": .integer(tokenCount), "trained_tokens": .integer(trainedCount),
            "pieces": .array(pieces.map { ["text": .string($0.text), "trained": .bool($0.isTrained)] }),
        ]
    }
}

// MARK: Tokenizing

/// A text file as a model's tokenizer sees it.
public struct Tokenization: Sendable {
    /// The token ids.
    public var ids: [Int32]
    /// Bytes of the text.
    public var byteCount: Int
    /// Wall time of encoding, without reading files.
    public var seconds: Double

    /// Encodes a whole file.
    public init(file: String, model folder: String) throws(MartletError) {
        try self.init(text: String(decoding: try FileSystem.read(file), as: UTF8.self), model: folder)
    }

    /// Encodes a text.
    public init(text: String, model folder: String) throws(MartletError) {
        let tokenizer = try Tokenizer(folder: folder)
        byteCount = text.utf8.count
        let watch = Stopwatch()
        ids = try tokenizer.encode(text, addsSpecialTokens: false)
        seconds = watch.seconds
    }

    /// Writes the ids to a file, as a JSON list.
    public func write(to path: String) throws(MartletError) {
        try AtomicFile.write("[" + ids.map { "\($0)" }.joined(separator: ", ") + "]\n", to: path)
    }

    /// The result for machines.
    public var json: String {
        let object: JSON = [
            "tokens": .integer(ids.count), "bytes": .integer(byteCount), "seconds": .number(seconds),
            "megabytes_per_second": .number(seconds > 0 ? Double(byteCount) / 1e6 / seconds : 0),
        ]
        return object.text()
    }
}
