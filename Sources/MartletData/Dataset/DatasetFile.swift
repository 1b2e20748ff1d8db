import MartletCore

/// One open data file: the places of its rows, and any row on demand.
struct DatasetFile: Sendable {
    enum Kind: Sendable, Equatable {
        case jsonLines, jsonList
        case csv(delimiter: UInt8)
        case text

        var name: String {
            switch self {
            case .jsonLines: "JSON Lines"
            case .jsonList: "JSON list"
            case .csv(let delimiter): delimiter == 0x09 ? "TSV" : "CSV"
            case .text: "plain text"
            }
        }
    }

    let path: String
    let kind: Kind
    let isCompressed: Bool
    let places: [RowPlace]
    private let bytes: ByteFile
    private let header: [String]
    private let textDocuments: TextDocuments

    /// Opens the file and finds its rows: one pass over all of it.
    init(opening path: String, textDocuments: TextDocuments) throws(MartletError) {
        let raw = try ByteFile(opening: path)
        isCompressed = try raw.isGzip()
        guard isCompressed || !path.lowercased().hasSuffix(".gz") || raw.size == 0 else {
            throw MartletError(
                "this is not a gzip file", in: path, because: "it does not start with the bytes 1F 8B",
                fix: "rename it, or compress it with gzip")
        }
        bytes = isCompressed ? try raw.decompressed() : raw
        self.path = path
        self.textDocuments = textDocuments
        let start = try DatasetFile.checkText(bytes)
        kind = try DatasetFile.kind(of: path, first: try DatasetFile.firstByte(bytes, from: start))
        var rows = try DatasetFile.scan(bytes, kind, from: start, textDocuments)
        header = try DatasetFile.takeHeader(&rows, kind, bytes)
        places = rows
        guard !places.isEmpty else {
            throw DatasetFile.empty(path, header.isEmpty ? "it holds no more than white space" : "it has only a header")
        }
    }

    var rowCount: Int { places.count }

    /// "file, line N" of a row.
    func location(of row: Int) -> String { "\(path), line \(places[row].line)" }

    /// Whether the row starts a document, and whether it ends one. Only a whole text file has rows that do not.
    func borders(of row: Int) -> (starts: Bool, ends: Bool) {
        guard kind == .text, textDocuments == .wholeFile else { return (true, true) }
        return (row == 0, row == places.count - 1)
    }

    /// The row as an object. Errors know their place.
    func row(_ index: Int) throws(MartletError) -> JSONObject {
        let place = places[index]
        let row = try bytes.bytes(at: place.offset, count: Int(place.length))
        do throws(MartletError) {
            return try parse(row)
        } catch {
            throw relocated(error, to: place)
        }
    }

    private func parse(_ row: [UInt8]) throws(MartletError) -> JSONObject {
        guard !row.contains(0) else {
            throw MartletError(
                "the row is not text", because: "it holds a NUL byte", fix: "check that the file is not damaged")
        }
        switch kind {
        case .csv(let delimiter): return try csvObject(try csvFields(row, delimiter: delimiter), header: header)
        case .text: return ["text": .string(try plainText(row))]
        case .jsonLines, .jsonList:
            var outcome: Result<JSON, MartletError> = .success(.null)
            row.withUnsafeBytes { bytes in
                outcome = Result { () throws(MartletError) in try JSON(parsing: bytes) }
            }
            let value = try outcome.get()
            guard let object = value.object else {
                throw MartletError(
                    "a row is not an object", because: "it is \(value.kind)",
                    fix: "write every row as {\"column\": value}")
            }
            return object
        }
    }

    /// The text of a plain text row, with line ends made "\n".
    private func plainText(_ row: [UInt8]) throws(MartletError) -> String {
        var row = row
        if row.contains(0x0D) {
            row = row.indices.filter { row[$0] != 0x0D || $0 + 1 == row.count || row[$0 + 1] != 0x0A }.map { row[$0] }
        }
        guard let text = String(validating: row, as: UTF8.self) else {
            let lines = row.split(separator: 0x0A, omittingEmptySubsequences: false)
            let bad = lines.firstIndex { String(validating: $0, as: UTF8.self) == nil } ?? 0
            throw MartletError(
                "the row is not valid UTF-8", in: "line \(bad + 1), column 0", because: "it holds other bytes",
                fix: "convert the file: iconv -f LATIN1 -t UTF-8 OLD > NEW")
        }
        return text
    }

    /// Turns "line A, column B" of the row into a line of the file.
    private func relocated(_ error: MartletError, to place: RowPlace) -> MartletError {
        var copy = error
        copy.location = "\(path), line \(place.line)"
        if kind == .jsonLines, error.problem == "not valid JSON" {
            copy.remedy = "correct that line: each line must hold one complete JSON object"
        }
        let words = (error.location ?? "").split(whereSeparator: { $0 == " " || $0 == "," })
        if words.count == 4, words[0] == "line", let line = Int(words[1]), let column = Int(words[3]) {
            copy.location = "\(path), line \(Int(place.line) + line - 1)" + (column > 0 ? ", column \(column)" : "")
        }
        return copy
    }
}

extension DatasetFile {
    fileprivate static func empty(_ path: String, _ reason: String = "it is empty") -> MartletError {
        MartletError("the file has no rows", in: path, because: reason, fix: "check the path and the file")
    }

    /// Refuses what is not UTF-8 text at a glance; returns where the text starts.
    fileprivate static func checkText(_ file: ByteFile) throws(MartletError) -> Int {
        guard file.size > 0 else { throw empty(file.name) }
        let head = try file.bytes(at: 0, count: min(file.size, 1 << 16))
        if head.starts(with: [0xFF, 0xFE]) || head.starts(with: [0xFE, 0xFF]) {
            throw MartletError(
                "the file is UTF-16", in: file.name, because: "data files must be UTF-8",
                fix: "convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW")
        }
        if let place = head.firstIndex(of: 0) {
            let line = head[..<place].reduce(1) { $0 + ($1 == 0x0A ? 1 : 0) }
            throw MartletError(
                "the file is not text", in: "\(file.name), line \(line)", because: "byte \(place) is NUL",
                fix: "give JSON Lines, JSON, CSV or plain text; other kinds must be converted first")
        }
        return head.starts(with: [0xEF, 0xBB, 0xBF]) ? 3 : 0
    }

    /// The first byte that is not white space, in the first 64 KiB.
    fileprivate static func firstByte(_ file: ByteFile, from start: Int) throws(MartletError) -> UInt8? {
        try file.bytes(at: start, count: min(file.size - start, 1 << 16))
            .first { ![0x20, 0x09, 0x0A, 0x0D].contains($0) }
    }

    static let extensions = ["jsonl", "ndjson", "json", "csv", "tsv", "txt", "text", "md"]

    /// The extension of a path in small letters, without ".gz".
    static func fileExtension(of path: String) -> String {
        var name = (path.split(separator: "/").last.map(String.init) ?? path).lowercased()
        if name.hasSuffix(".gz") { name.removeLast(3) }
        guard let dot = name.lastIndex(of: ".") else { return "" }
        return String(name[name.index(after: dot)...])
    }

    fileprivate static func kind(of path: String, first: UInt8?) throws(MartletError) -> Kind {
        switch fileExtension(of: path) {
        case "jsonl", "ndjson", "json": return first == UInt8(ascii: "[") ? .jsonList : .jsonLines
        case "csv": return .csv(delimiter: UInt8(ascii: ","))
        case "tsv": return .csv(delimiter: 0x09)
        case "txt", "text", "md": return .text
        default:
            let other = fileExtension(of: path)
            throw MartletError(
                "cannot tell what kind of data this is", in: path,
                because: other.isEmpty ? "the name has no extension" : "'.\(other)' is not a known extension",
                fix: "name it .jsonl, .json, .csv, .tsv or .txt, as it is (.gz may follow)")
        }
    }

    fileprivate static func scan(
        _ file: ByteFile, _ kind: Kind, from start: Int, _ textDocuments: TextDocuments
    ) throws(MartletError) -> [RowPlace] {
        var scanner: any RowScanner =
            switch kind {
            case .jsonLines: LineScanner(name: file.name, offset: start)
            case .jsonList: JSONArrayScanner(name: file.name, offset: start)
            case .csv(let delimiter): CSVScanner(name: file.name, offset: start, delimiter: delimiter)
            case .text: TextScanner(name: file.name, offset: start, documents: textDocuments)
            }
        var skip = start
        try file.forEachChunk { (chunk) throws(MartletError) in
            try scanner.scan(UnsafeRawBufferPointer(rebasing: chunk[skip...]))
            skip = 0
        }
        return try scanner.finish()
    }

    /// Takes the header off the rows of a CSV file.
    fileprivate static func takeHeader(
        _ rows: inout [RowPlace], _ kind: Kind, _ file: ByteFile
    ) throws(MartletError) -> [String] {
        guard case .csv(let delimiter) = kind, let first = rows.first else { return [] }
        rows.removeFirst()
        do throws(MartletError) {
            let row = try file.bytes(at: first.offset, count: Int(first.length))
            return try csvHeader(try csvFields(row, delimiter: delimiter))
        } catch {
            throw error.at("\(file.name), line \(first.line)")
        }
    }
}
