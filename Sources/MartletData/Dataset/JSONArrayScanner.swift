import MartletCore

/// Rows of a file that holds one JSON list: its elements.
struct JSONArrayScanner: RowScanner {
    private enum State { case beforeList, beforeElement, inElement, afterList }

    private var log: RowLog
    private var state = State.beforeList
    private var depth = 0
    private var isInString = false
    private var isEscaped = false
    /// Whether the last structural byte was a comma, so that an element must follow.
    private var followsComma = false

    init(name: String, offset: Int = 0) { log = RowLog(name: name, offset: offset) }

    mutating func scan(_ chunk: UnsafeRawBufferPointer) throws(MartletError) {
        for byte in chunk {
            if isInString { string(byte) } else { try structure(byte) }
            if byte == 0x0A { log.line += 1 }
            log.offset += 1
        }
        if state == .inElement { try log.check(log.offset) }
    }

    private mutating func string(_ byte: UInt8) {
        if isEscaped { isEscaped = false; return }
        if byte == UInt8(ascii: "\\") { isEscaped = true }
        if byte == UInt8(ascii: "\"") { isInString = false }
    }

    private mutating func structure(_ byte: UInt8) throws(MartletError) {
        if byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { return }
        switch state {
        case .beforeList:
            guard byte == UInt8(ascii: "[") else { throw failure("the file does not start with a list") }
            state = .beforeElement
        case .beforeElement:
            if byte == UInt8(ascii: "]"), !followsComma { state = .afterList; return }
            guard byte != UInt8(ascii: ","), byte != UInt8(ascii: "]") else { throw failure("an element is missing") }
            log.begin()
            state = .inElement
            element(byte)
        case .inElement:
            guard depth == 0, byte == UInt8(ascii: ",") || byte == UInt8(ascii: "]") else { return element(byte) }
            try log.end(at: log.offset)
            followsComma = byte == UInt8(ascii: ",")
            state = followsComma ? .beforeElement : .afterList
        case .afterList:
            throw failure("there is more text after the list")
        }
    }

    private mutating func element(_ byte: UInt8) {
        switch byte {
        case UInt8(ascii: "\""): isInString = true
        case UInt8(ascii: "{"), UInt8(ascii: "["): depth += 1
        case UInt8(ascii: "}"), UInt8(ascii: "]"): depth -= 1
        default: break
        }
    }

    mutating func finish() throws(MartletError) -> [RowPlace] {
        guard state == .afterList else { throw failure("the file ends before the list is closed") }
        return log.places
    }

    private func failure(_ reason: String) -> MartletError {
        MartletError(
            "not a valid JSON list", in: "\(log.name), line \(log.line)", because: reason,
            fix: "write the rows as one list [{...}, {...}], or one a line (JSON Lines)")
    }
}
