/// One step of the decoder of `tokenizer.json`. A step takes the pieces of the step before, one by one, and may keep
/// some back until it knows more; so the same steps decode a whole list of ids and a stream.
enum DecoderStep: Sendable {
    case byteLevel
    case byteFallback
    case replace(RegexProgram, with: [UInt8])
    case strip(scalar: UInt32, start: Int, stop: Int)
    /// Removes the scalar up to so often from the start of the whole text: `fuse`, then `strip`, without waiting.
    case trimStart(scalar: UInt32, most: Int)
    case metaspace(replacement: UInt32, dropsFirst: Bool)
    /// Makes one piece of everything; it is out at the end only. Left out where it would be the last step.
    case fuse
    /// Puts the separator between pieces.
    case join(separator: [UInt8])

    /// What a step keeps between pieces.
    struct State {
        var kept: [UInt8] = []
        var isFirst = true
    }
}

/// Runs decoder steps over tokens.
struct DecoderRun {
    private let steps: [DecoderStep]
    private var states: [DecoderStep.State]
    private let machine = RegexMachine()
    /// The text decoded and not yet taken; valid UTF-8.
    private(set) var text: [UInt8] = []

    init(_ steps: [DecoderStep]) {
        self.steps = steps
        states = steps.map { _ in DecoderStep.State() }
    }

    mutating func push(_ token: UnsafeBufferPointer<UInt8>) {
        if case .byteLevel = steps.first {
            DecoderRun.appendBytes(of: token, to: &states[0].kept)
        } else {
            take(Array(token), step: 0)
        }
    }

    /// Lets out what is certain.
    mutating func settle() {
        for step in steps.indices {
            if case .byteLevel = steps[step] { flushUTF8(step, isEnd: false) }
        }
    }

    mutating func finish() {
        for step in steps.indices {
            let kept = states[step].kept
            switch steps[step] {
            case .byteLevel: flushUTF8(step, isEnd: true)
            case .byteFallback: flushBytes(step)
            case .fuse: take(kept, step: step + 1)
            default: break
            }
            states[step] = DecoderStep.State()
        }
    }

    mutating func takeText() -> String {
        defer { text.removeAll(keepingCapacity: true) }
        return String(decoding: text, as: UTF8.self)
    }

    private mutating func take(_ piece: [UInt8], step: Int) {
        guard step < steps.count else {
            text += piece
            return
        }
        switch steps[step] {
        case .byteLevel:
            piece.withUnsafeBufferPointer { DecoderRun.appendBytes(of: $0, to: &states[step].kept) }
        case .byteFallback:
            if let byte = DecoderRun.byte(of: piece) {
                states[step].kept.append(byte)
            } else {
                flushBytes(step)
                take(piece, step: step + 1)
            }
        case .replace(let program, let content): take(replaced(piece, program, content), step: step + 1)
        case .strip(let scalar, let start, let stop):
            take(DecoderRun.stripped(piece, scalar, start, stop), step: step + 1)
        case .trimStart(let scalar, let most): trimStart(piece, utf8(scalar), most, step)
        case .metaspace(let replacement, let dropsFirst):
            let drops = dropsFirst && states[step].isFirst
            states[step].isFirst = false
            take(DecoderRun.spaced(piece, utf8(replacement), by: drops ? [] : [0x20]), step: step + 1)
        case .fuse: states[step].kept += piece
        case .join(let separator):
            let lead = states[step].isFirst ? [] : separator
            states[step].isFirst = false
            take(lead + piece, step: step + 1)
        }
    }

    // MARK: Byte level

    private static func appendBytes(of token: UnsafeBufferPointer<UInt8>, to bytes: inout [UInt8]) {
        guard let start = token.baseAddress else { return }
        let before = bytes.count
        var i = 0
        while i < token.count {
            let (scalar, length) = decodeScalar(start + i)
            guard let byte = ByteAlphabet.byte(of: scalar) else {
                // A token with a character of no byte is plain text.
                bytes.removeSubrange(before...)
                bytes += token
                return
            }
            bytes.append(byte)
            i += length
        }
    }

    /// Hands on what is whole characters; what is none becomes U+FFFD. The start of a character waits for the rest.
    private mutating func flushUTF8(_ step: Int, isEnd: Bool) {
        var kept = states[step].kept
        let waiting = isEnd ? 0 : DecoderRun.unfinished(kept)
        guard kept.count > waiting else { return }
        let rest = Array(kept.suffix(waiting))
        kept.removeLast(waiting)
        states[step].kept = rest
        take(Array(String(decoding: kept, as: UTF8.self).utf8), step: step + 1)
    }

    /// How many bytes at the end are a valid beginning of a character that is not whole.
    private static func unfinished(_ bytes: [UInt8]) -> Int {
        for back in 1...3 where back <= bytes.count {
            let lead = bytes[bytes.count - back]
            if lead & 0xC0 == 0x80 { continue }
            guard lead >= 0xC2, lead <= 0xF4, back < scalarLength(lead) else { return 0 }
            guard back > 1 else { return back }
            let second = bytes[bytes.count - back + 1]
            let isValid =
                switch lead {
                case 0xE0: second >= 0xA0
                case 0xED: second < 0xA0
                case 0xF0: second >= 0x90
                case 0xF4: second < 0x90
                default: true
                }
            return isValid ? back : 0
        }
        return 0
    }

    // MARK: Byte fallback

    /// The byte of a token '<0x41>'.
    private static func byte(of piece: [UInt8]) -> UInt8? {
        guard piece.count == 6, piece.starts(with: Array("<0x".utf8)), piece[5] == UInt8(ascii: ">") else { return nil }
        guard piece[3] != UInt8(ascii: "-"), let hex = String(validating: piece[3...4], as: UTF8.self) else {
            return nil
        }
        return UInt8(hex, radix: 16)
    }

    /// A run of byte tokens is text if all of it is valid UTF-8, else a U+FFFD for each byte.
    private mutating func flushBytes(_ step: Int) {
        let bytes = states[step].kept
        guard !bytes.isEmpty else { return }
        states[step].kept = []
        if String(validating: bytes, as: UTF8.self) != nil {
            take(bytes, step: step + 1)
        } else {
            for _ in bytes { take(Array("\u{FFFD}".utf8), step: step + 1) }
        }
    }

    // MARK: Text

    private func replaced(_ piece: [UInt8], _ program: RegexProgram, _ content: [UInt8]) -> [UInt8] {
        piece.withUnsafeBufferPointer { piece in
            guard let start = piece.baseAddress, !piece.isEmpty else { return [] }
            machine.refill(forText: piece.count)
            var matches = RegexMatches(program, in: start, count: piece.count, machine: machine)
            var result: [UInt8] = []
            var done = 0
            // A pattern that needs more steps than that leaves the rest as it is.
            while let match = matches.next(), machine.spend(content.count) {
                result += piece[done..<match.lowerBound]
                result += content
                done = match.upperBound
            }
            return result + piece[done...]
        }
    }

    private static func stripped(_ piece: [UInt8], _ scalar: UInt32, _ start: Int, _ stop: Int) -> [UInt8] {
        let unit = utf8(scalar)
        var slice = piece[...]
        for _ in 0..<start {
            guard !unit.isEmpty, slice.starts(with: unit) else { break }
            slice = slice.dropFirst(unit.count)
        }
        for _ in 0..<stop {
            guard !unit.isEmpty, slice.suffix(unit.count).elementsEqual(unit) else { break }
            slice = slice.dropLast(unit.count)
        }
        return Array(slice)
    }

    /// The step's state: `kept` holds a byte for each removal, `isFirst` tells that nothing else came yet.
    private mutating func trimStart(_ piece: [UInt8], _ unit: [UInt8], _ most: Int, _ step: Int) {
        var slice = piece[...]
        while states[step].isFirst, states[step].kept.count < most, !unit.isEmpty, slice.starts(with: unit) {
            slice = slice.dropFirst(unit.count)
            states[step].kept.append(0)
        }
        if !slice.isEmpty { states[step].isFirst = false }
        take(Array(slice), step: step + 1)
    }

    private static func spaced(_ piece: [UInt8], _ replacement: [UInt8], by space: [UInt8]) -> [UInt8] {
        var result: [UInt8] = []
        var i = 0
        while i < piece.count {
            if piece[i...].starts(with: replacement) {
                result += space
                i += replacement.count
            } else {
                result.append(piece[i])
                i += 1
            }
        }
        return result
    }
}

/// Decodes ids one at a time. The texts handed out, put together, are what decoding all ids at once gives.
///
/// A text comes out as soon as no later id can change it: never half a character, and with byte-fallback tokens
/// only after the run of them has ended.
package struct StreamDecoder {
    private let vocabulary: Vocabulary
    private let skipsSpecialTokens: Bool
    private var run: DecoderRun

    init(_ vocabulary: Vocabulary, _ steps: [DecoderStep], skipsSpecialTokens: Bool) {
        self.vocabulary = vocabulary
        self.skipsSpecialTokens = skipsSpecialTokens
        run = DecoderRun(steps)
    }

    /// Takes the next id; returns the text that is certain now and was not before. An unknown id is no text.
    package mutating func feed(_ id: Int32) -> String {
        append(id)
        run.settle()
        return run.takeText()
    }

    /// Returns what was kept back; the decoder is as new then.
    package mutating func finish() -> String {
        run.finish()
        return run.takeText()
    }

    mutating func append(_ id: Int32) {
        guard vocabulary.contains(id), !(skipsSpecialTokens && vocabulary.isSpecial(id)) else { return }
        run.push(vocabulary.bytes(of: id))
    }
}
