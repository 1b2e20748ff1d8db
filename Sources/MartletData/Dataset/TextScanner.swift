import MartletCore

/// Rows of a plain text file. With `.wholeFile` the file is one document, cut after a line end into pieces of some
/// 256 KiB so that a file larger than memory can be read; with `.blankLine` every run of lines between empty lines is a
/// document.
struct TextScanner: RowScanner {
    static let pieceSize = 256 << 10

    private var log: RowLog
    private let documents: TextDocuments
    private var start = 0
    /// Offset after the last byte that is not white space; rows end there in `.blankLine`.
    private var textEnd = 0
    private var hasText = false
    private var lineIsBlank = true

    init(name: String, offset: Int = 0, documents: TextDocuments) {
        log = RowLog(name: name, offset: offset)
        start = offset
        self.documents = documents
    }

    mutating func scan(_ chunk: UnsafeRawBufferPointer) throws(MartletError) {
        for byte in chunk {
            // A piece without a line end is cut before the first byte of a character.
            let length = log.offset - start
            if documents == .wholeFile, length >= 4 * TextScanner.pieceSize, byte & 0xC0 != 0x80 { try cut() }
            let isSpace = byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09
            if !isSpace {
                if documents == .blankLine && !hasText { begin() }
                hasText = true
                lineIsBlank = false
                textEnd = log.offset + 1
            }
            log.offset += 1
            guard byte == 0x0A else { continue }
            log.line += 1
            if documents == .wholeFile {
                if log.offset - start >= TextScanner.pieceSize { try cut() }
            } else if lineIsBlank && hasText {
                try log.end(at: textEnd)
                hasText = false
            }
            lineIsBlank = true
        }
        if hasText { try log.check(log.offset) }
    }

    private mutating func begin() {
        log.begin()
        start = log.offset
    }

    private mutating func cut() throws(MartletError) {
        guard hasText else { return }
        try log.end(at: log.offset)
        hasText = false
        begin()
    }

    mutating func finish() throws(MartletError) -> [RowPlace] {
        if hasText { try log.end(at: documents == .wholeFile ? log.offset : textEnd) }
        return log.places
    }
}
