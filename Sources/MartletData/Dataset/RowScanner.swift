import MartletCore

/// Where one row lies in its file: 16 bytes a row, so that ten million rows cost 160 MB and not their text.
struct RowPlace: Sendable, Equatable {
    var offset: Int
    var length: UInt32
    /// The line on which the row starts, from 1.
    var line: UInt32
}

/// Finds the borders of rows in a stream of chunks. It looks at structure only; the rows are parsed when they are read.
protocol RowScanner {
    /// Takes the next chunk of the file.
    mutating func scan(_ chunk: UnsafeRawBufferPointer) throws(MartletError)
    /// The places of all rows, after the last chunk.
    mutating func finish() throws(MartletError) -> [RowPlace]
}

/// What every scanner counts: the current byte, the current line, and the rows found.
struct RowLog {
    /// A longer row is taken as a sign that the file is not what it says (no line ends, binary data).
    static let longestRow = 256 << 20

    let name: String
    /// Offset of the byte under examination.
    var offset: Int
    var line = 1
    var places: [RowPlace] = []
    private var start: Int
    private var startLine = 1

    /// `offset` is where the text starts, after a byte order mark.
    init(name: String, offset: Int = 0) {
        self.name = name
        self.offset = offset
        start = offset
    }

    /// A row starts at the current byte.
    mutating func begin() { (start, startLine) = (offset, line) }

    /// The row ends before the byte at `end`.
    mutating func end(at end: Int) throws(MartletError) {
        try check(end)
        places.append(RowPlace(offset: start, length: UInt32(end - start), line: UInt32(clamping: startLine)))
    }

    /// Throws if the open row has grown too long.
    func check(_ end: Int) throws(MartletError) {
        guard end - start <= RowLog.longestRow else {
            throw MartletError(
                "a row is longer than 256 MiB", in: "\(name), line \(startLine)",
                because: "no end of the row was found in \(end - start) bytes",
                fix: "check that the file is of the kind its name says")
        }
    }
}

/// Rows of JSON Lines: one a line, lines of white space left out.
struct LineScanner: RowScanner {
    private var log: RowLog
    private var isBlank = true

    init(name: String, offset: Int = 0) { log = RowLog(name: name, offset: offset) }

    mutating func scan(_ chunk: UnsafeRawBufferPointer) throws(MartletError) {
        for byte in chunk {
            if byte == 0x0A {
                try endLine()
                log.line += 1
                log.offset += 1
                log.begin()
                continue
            }
            if byte != 0x20 && byte != 0x0D && byte != 0x09 { isBlank = false }
            log.offset += 1
        }
        try log.check(log.offset)
    }

    private mutating func endLine() throws(MartletError) {
        if !isBlank { try log.end(at: log.offset) }
        isBlank = true
    }

    mutating func finish() throws(MartletError) -> [RowPlace] {
        try endLine()
        return log.places
    }
}
