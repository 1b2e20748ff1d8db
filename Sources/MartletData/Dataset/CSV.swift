import MartletCore

/// Rows of a CSV file (RFC 4180): a line end inside quotes belongs to the field. The first row is the header.
struct CSVScanner: RowScanner {
    private enum State { case fieldStart, unquoted, quoted, quoteInQuoted }

    private var log: RowLog
    private let delimiter: UInt8
    private var state = State.fieldStart
    private var isBlank = true

    init(name: String, offset: Int = 0, delimiter: UInt8) {
        log = RowLog(name: name, offset: offset)
        self.delimiter = delimiter
    }

    mutating func scan(_ chunk: UnsafeRawBufferPointer) throws(MartletError) {
        for byte in chunk {
            let isLineEnd = byte == 0x0A
            let endsRow = isLineEnd && state != .quoted
            if endsRow { try endRow() }
            if !isLineEnd && byte != 0x0D { isBlank = false }
            if isLineEnd { log.line += 1 }
            log.offset += 1
            if endsRow { log.begin() } else { advance(byte) }
        }
        try log.check(log.offset)
    }

    private mutating func advance(_ byte: UInt8) {
        let isQuote = byte == UInt8(ascii: "\"")
        switch state {
        case .quoted: if isQuote { state = .quoteInQuoted }
        case .quoteInQuoted where isQuote, .fieldStart where isQuote: state = .quoted
        default: state = byte == delimiter ? .fieldStart : .unquoted
        }
    }

    private mutating func endRow() throws(MartletError) {
        if !isBlank { try log.end(at: log.offset) }
        isBlank = true
        state = .fieldStart
    }

    mutating func finish() throws(MartletError) -> [RowPlace] {
        try endRow()
        return log.places
    }
}

/// The fields of one CSV row. A quote inside an unquoted field is a character like any other; after a closing quote only
/// a delimiter or the end of the row may follow.
func csvFields(_ row: [UInt8], delimiter: UInt8) throws(MartletError) -> [String] {
    let quote = UInt8(ascii: "\"")
    var end = row.count
    if end > 0, row[end - 1] == 0x0D { end -= 1 }
    var fields: [String] = []
    var i = 0
    while true {
        var field: [UInt8] = []
        if i < end, row[i] == quote {
            i += 1
            while true {
                guard i < end else { throw badCSV("a quote that opens in this row is never closed") }
                if row[i] != quote {
                    field.append(row[i])
                } else if i + 1 < end, row[i + 1] == quote {
                    field.append(quote)
                    i += 1
                } else {
                    break
                }
                i += 1
            }
            i += 1
            guard i == end || row[i] == delimiter else {
                throw badCSV("text follows a closing quote in field \(fields.count + 1)")
            }
        } else {
            let start = i
            while i < end, row[i] != delimiter { i += 1 }
            field = Array(row[start..<i])
        }
        guard let text = String(validating: field, as: UTF8.self) else {
            throw MartletError(
                "the row is not valid UTF-8", because: "field \(fields.count + 1) holds other bytes",
                fix: "convert the file: iconv -f LATIN1 -t UTF-8 OLD > NEW")
        }
        fields.append(text)
        if i == end { return fields }
        i += 1
    }
}

private func badCSV(_ reason: String) -> MartletError {
    MartletError(
        "not valid CSV", because: reason,
        fix: "quote fields as RFC 4180 says: \"one \"\"quoted\"\" word\"")
}

/// Checks the header row: every column needs a name of its own.
func csvHeader(_ fields: [String]) throws(MartletError) -> [String] {
    var seen: Set<String> = []
    for field in fields where !seen.insert(field).inserted {
        throw MartletError(
            "two CSV columns have the same name", because: "the header repeats '\(field)'",
            fix: "the first row must name the columns, each once")
    }
    return fields
}

/// A CSV row as an object of strings.
func csvObject(_ fields: [String], header: [String]) throws(MartletError) -> JSONObject {
    guard fields.count == header.count else {
        throw MartletError(
            "the row has the wrong number of fields", because: "it has \(fields.count); the header has \(header.count)",
            fix: "quote fields that hold a delimiter or a line end")
    }
    var object = JSONObject()
    for (name, field) in zip(header, fields) { object[name] = .string(field) }
    return object
}
