import Dispatch
import MartletCore

/// The work of loading: finds the format of each file, then tokenises its rows on all cores, a batch at a time, and takes
/// the results in the order of the rows, so that the outcome does not depend on the number of cores.
struct DatasetLoader {
    let settings: DatasetSettings
    let tokenizer: ExampleTokenizer
    let files: [DatasetFile]
    private(set) var report: DataReport
    private(set) var writer: TokenStore.Writer
    private(set) var origins: [ExampleOrigin] = []
    private(set) var fingerprint = Fingerprint()
    /// A batch ends at this many rows or bytes.
    private static let batchRows = 1024
    private static let batchBytes = 16 << 20

    init(
        paths: [String], settings: DatasetSettings, encoder: any TextEncoder, renderer: (any ConversationRenderer)?
    ) throws(MartletError) {
        try settings.validate()
        let found = try datasetPaths(paths)
        var files: [DatasetFile] = []
        for path in found.files { files.append(try DatasetFile(opening: path, textDocuments: settings.textDocuments)) }
        self.files = files
        self.settings = settings
        tokenizer = ExampleTokenizer(encoder: encoder, renderer: renderer, loss: settings.loss ?? .assistant)
        writer = TokenStore.Writer(budget: settings.memoryBudget)
        report = DataReport(ignoredPaths: found.ignored, maxLength: settings.maxLength)
        for file in files {
            let (format, isDetected) = try DatasetLoader.format(of: file, settings)
            try check(format, file)
            report.files.append(
                DataReport.File(
                    path: file.path, kind: file.kind.name, isCompressed: file.isCompressed, format: format,
                    isFormatDetected: isDetected, rowCount: file.rowCount))
        }
    }

    /// The format set, or that of the first row (with bad rows skipped, of the first row that has one).
    private static func format(
        of file: DatasetFile, _ settings: DatasetSettings
    ) throws(MartletError) -> (DatasetFormat, isDetected: Bool) {
        if let format = settings.format { return (format, false) }
        var firstKeys: [String]?
        for index in 0..<(settings.skipsBadRows ? file.rowCount : 1) {
            do throws(MartletError) {
                let row = try file.row(index)
                if let format = DatasetFormat.detect(row, columns: settings.columns) { return (format, true) }
                firstKeys = firstKeys ?? row.keys
            } catch  where settings.skipsBadRows && index + 1 < file.rowCount {
                continue
            }
        }
        let keys = (firstKeys ?? []).map { "'\($0)'" }.joined(separator: ", ")
        throw MartletError(
            "cannot tell the format of the data", in: file.location(of: 0),
            because: "the row has \(keys.isEmpty ? "no columns" : keys); known are \(DatasetFormat.knownColumns)",
            fix: "rename the columns, or map them (for example columns: {instruction: question, output: answer})")
    }

    /// Refuses settings that the format cannot follow.
    private func check(_ format: DatasetFormat, _ file: DatasetFile) throws(MartletError) {
        if format == .text, let loss = settings.loss, loss != .all {
            throw MartletError(
                "loss '\(loss.rawValue)' has no meaning for raw text", in: file.path,
                because: "raw text has no assistant messages", fix: "set the loss to 'all', or leave it out")
        }
        if format != .text, settings.longExamples == .split {
            throw MartletError(
                "only raw text can be split", in: file.path, because: "the format is \(format.rawValue)",
                fix: "set long examples to 'truncate' or 'drop'")
        }
        if format == .chat || format == .shareGPT, tokenizer.renderer == nil {
            throw ExampleTokenizer.noTemplate.at(file.path)
        }
    }

    /// Tokenises everything.
    mutating func run(_ progress: ((Double) -> Void)?) throws(MartletError) {
        let total = files.reduce(0) { $0 + $1.rowCount }
        var done = 0
        for index in files.indices {
            var start = 0
            while start < files[index].rowCount {
                let end = batchEnd(files[index], from: start)
                try take(tokenized(start..<end, file: index), firstRow: start, file: index)
                done += end - start
                start = end
                progress?(Double(done) / Double(total))
            }
        }
        report.exampleCount = origins.count
        addNotes()
        guard report.exampleCount > 0 else {
            throw MartletError(
                "no example is left to train on", in: files.map(\.path).joined(separator: ", "),
                because: report.lines.dropFirst(files.count + 1).joined(separator: "; "),
                fix: "look at the first rows; check max_length, the loss setting and the chat template")
        }
    }

    private mutating func addNotes() {
        let needsEnd = report.files.contains {
            $0.format == .text || (tokenizer.renderer == nil && $0.format != .chat && $0.format != .shareGPT)
        }
        if needsEnd, tokenizer.encoder.eosID == nil {
            report.notes.append("the tokenizer has no end-of-text token: texts do not end with one")
        }
        for file in files where file.kind == .text {
            let rule = settings.textDocuments == .wholeFile ? "is one document" : "has a document between empty lines"
            report.notes.append("\(file.path) \(rule)")
        }
    }

    private func batchEnd(_ file: DatasetFile, from start: Int) -> Int {
        var end = start, bytes = 0
        while end < file.rowCount, end - start < DatasetLoader.batchRows, bytes < DatasetLoader.batchBytes {
            bytes += Int(file.places[end].length)
            end += 1
        }
        return end
    }

    /// The rows of a batch, tokenised in parallel.
    private func tokenized(_ rows: Range<Int>, file index: Int) -> [Result<TokenizedExample, MartletError>] {
        let file = files[index], tokenizer = tokenizer
        let reader = ExampleReader(format: report.files[index].format, columns: settings.columns)
        return [Result<TokenizedExample, MartletError>](unsafeUninitializedCapacity: rows.count) { buffer, count in
            nonisolated(unsafe) let results = buffer
            DispatchQueue.concurrentPerform(iterations: rows.count) { i in
                let result = Result { () throws(MartletError) in
                    try DatasetLoader.tokenize(file, rows.lowerBound + i, reader, tokenizer)
                }
                results.initializeElement(at: i, to: result)
            }
            count = rows.count
        }
    }

    private static func tokenize(
        _ file: DatasetFile, _ row: Int, _ reader: ExampleReader, _ tokenizer: ExampleTokenizer
    ) throws(MartletError) -> TokenizedExample {
        let object = try file.row(row)
        do throws(MartletError) {
            var example = try reader.example(object)
            if case .text(let text, _, _) = example {
                let borders = file.borders(of: row)
                example = .text(text, startsDocument: borders.starts, endsDocument: borders.ends)
            }
            return try tokenizer.tokenize(example)
        } catch {
            throw error.at(file.location(of: row))
        }
    }

    /// Stores the results of a batch, in order.
    private mutating func take(
        _ results: [Result<TokenizedExample, MartletError>], firstRow: Int, file: Int
    ) throws(MartletError) {
        for (i, result) in results.enumerated() {
            switch result {
            case .success(let example): try take(example, ExampleOrigin(file: Int32(file), row: Int32(firstRow + i)))
            case .failure(let error):
                guard settings.skipsBadRows else { throw error }
                report.countBadRow(error, file: file)
            }
        }
    }

    /// Fits an example to `maxLength` and stores what is worth training on.
    private mutating func take(_ example: TokenizedExample, _ origin: ExampleOrigin) throws(MartletError) {
        let limit = settings.maxLength
        guard example.tokens.count > limit else { return try keep(example, origin) }
        let isText = report.files[Int(origin.file)].format == .text
        switch settings.longExamples ?? (isText ? .split : .truncate) {
        case .drop: report.droppedCount += 1
        case .truncate:
            report.truncatedCount += 1
            try keep(example[0..<limit], origin)
        case .split:
            report.splitCount += 1
            for piece in split(example, limit) { try keep(piece, origin) }
        }
    }

    /// Pieces of at most `limit` tokens. Each starts with the last token of the one before, as context, so that every
    /// token but the first is predicted once.
    private func split(_ example: TokenizedExample, _ limit: Int) -> [TokenizedExample] {
        stride(from: 0, to: example.tokens.count - 1, by: limit - 1).map { start in
            var piece = example[start..<min(start + limit, example.tokens.count)]
            if start > 0 { piece.isTrained[0] = false }
            return piece
        }
    }

    private mutating func keep(_ example: TokenizedExample, _ origin: ExampleOrigin) throws(MartletError) {
        let trained = example.trainedCount
        guard trained > 0 else {
            report.emptyMaskCount += 1
            return
        }
        try writer.append(example)
        fingerprint.add(example.tokens.count)
        fingerprint.add(example.words)
        origins.append(origin)
        report.tokenCount += example.tokens.count
        report.trainedTokenCount += trained
        report.longestExample = max(report.longestExample, example.tokens.count)
        report.files[Int(origin.file)].exampleCount += 1
    }
}

extension TokenizedExample {
    /// A stretch of the example.
    fileprivate subscript(_ range: Range<Int>) -> TokenizedExample {
        TokenizedExample(tokens: Array(tokens[range]), isTrained: Array(isTrained[range]))
    }
}
