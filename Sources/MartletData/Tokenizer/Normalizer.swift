/// One step of the normalizer of `tokenizer.json`, applied to the text between added tokens.
enum NormalizerStep: Sendable {
    case form(UnicodeForm)
    case lowercase
    case strip(left: Bool, right: Bool)
    case prepend([UInt8])
    case replace(RegexProgram, with: [UInt8])

    /// Rewrites a text; nil if the step leaves it as it is. `text` is valid UTF-8.
    func apply(to text: UnsafeBufferPointer<UInt8>, tracks: Bool, machine: RegexMachine) -> AlignedText? {
        guard let start = text.baseAddress, !text.isEmpty else { return nil }
        switch self {
        case .form(let form): return form.apply(to: text, tracks: tracks)
        case .lowercase: return lowercased(start, text.count, tracks)
        case .strip(let left, let right): return stripped(start, text.count, left, right, tracks)
        case .prepend(let prefix):
            guard !prefix.isEmpty else { return nil }
            var result = AlignedText(tracks: tracks)
            result.append(prefix, for: 0..<scalarLength(start[0]))
            result.copy(start, 0..<text.count)
            return result
        case .replace(let program, let content): return replaced(start, text.count, program, content, tracks, machine)
        }
    }

    private func lowercased(_ text: UnsafePointer<UInt8>, _ count: Int, _ tracks: Bool) -> AlignedText {
        var result = AlignedText(tracks: tracks)
        var i = 0
        while i < count {
            let (scalar, length) = decodeScalar(text + i)
            let lower = UnicodeScalar(scalar)?.properties.lowercaseMapping ?? ""
            result.append(lower.utf8, for: i..<i + length)
            i += length
        }
        return result
    }

    private func stripped(
        _ text: UnsafePointer<UInt8>, _ count: Int, _ left: Bool, _ right: Bool, _ tracks: Bool
    ) -> AlignedText? {
        let low = left ? WhiteSpace.end(of: text, from: 0, count: count) : 0
        let high = right ? max(low, WhiteSpace.start(of: text, before: count)) : count
        if low == 0, high == count { return nil }
        var result = AlignedText(tracks: tracks)
        result.copy(text, low..<high)
        return result
    }

    private func replaced(
        _ text: UnsafePointer<UInt8>, _ count: Int, _ program: RegexProgram, _ content: [UInt8], _ tracks: Bool,
        _ machine: RegexMachine
    ) -> AlignedText? {
        var matches = RegexMatches(program, in: text, count: count, machine: machine)
        guard var match = matches.next() else { return nil }
        var result = AlignedText(tracks: tracks)
        var done = 0
        while machine.spend(content.count) {
            result.copy(text, done..<match.lowerBound)
            result.append(content, for: match)
            done = match.upperBound
            guard let next = matches.next() else { break }
            match = next
        }
        result.copy(text, done..<count)
        return result
    }
}

extension [NormalizerStep] {
    /// Runs the steps of a normalizer; nil if the text stays as it is.
    func apply(to text: UnsafeBufferPointer<UInt8>, tracks: Bool, machine: RegexMachine) -> AlignedText? {
        var result: AlignedText?
        for step in self {
            if let before = result {
                let after = before.bytes.withUnsafeBufferPointer {
                    step.apply(to: $0, tracks: tracks, machine: machine)
                }
                // Steps that each lengthen the text would grow it without bound.
                guard machine.spend(before.bytes.count) else { return result }
                if let after { result = after.following(before) }
            } else {
                result = step.apply(to: text, tracks: tracks, machine: machine)
            }
        }
        return result
    }

    func normalize(_ text: [UInt8], _ machine: RegexMachine) -> [UInt8] {
        text.withUnsafeBufferPointer { apply(to: $0, tracks: false, machine: machine)?.bytes } ?? text
    }
}

/// The matches of a pattern in a text, from left to right: an empty match right after another match does not count.
struct RegexMatches {
    private let program: RegexProgram
    private let text: UnsafePointer<UInt8>
    private let count: Int
    private let machine: RegexMachine
    private var from = 0
    private var lastEnd = -1

    init(_ program: RegexProgram, in text: UnsafePointer<UInt8>, count: Int, machine: RegexMachine) {
        self.program = program
        self.text = text
        self.count = count
        self.machine = machine
    }

    @inline(__always) mutating func next() -> Range<Int>? {
        while from <= count, let match = machine.firstMatch(of: program, in: text, count: count, from: from) {
            if match.start == match.end, match.end == lastEnd {
                if from >= count { return nil }
                from += scalarLength(text[from])
                continue
            }
            from = match.end
            lastEnd = match.end
            return match.start..<match.end
        }
        return nil
    }
}

/// Runs of white space (the Unicode property White_Space) at the edges of a text.
enum WhiteSpace {
    private static let table = ScalarTable(UnicodeClasses.space)

    static func end(of text: UnsafePointer<UInt8>, from: Int, count: Int) -> Int {
        var i = from
        while i < count {
            let length = table.length(at: text + i)
            if length == 0 { break }
            i += length
        }
        return i
    }

    static func start(of text: UnsafePointer<UInt8>, before end: Int) -> Int {
        var end = end
        while end > 0 {
            let last = scalarStart(text, before: end)
            if table.length(at: text + last) == 0 { break }
            end = last
        }
        return end
    }
}

/// Where the scalar that ends at `end` > 0 begins.
func scalarStart(_ text: UnsafePointer<UInt8>, before end: Int) -> Int {
    var i = end - 1
    while i > 0, text[i] & 0xC0 == 0x80 { i -= 1 }
    return i
}
