/// One step of the pre-tokenizer of `tokenizer.json`: each piece of the step before is cut further or rewritten.
enum PreTokenizerStep: Sendable {
    /// Cut at the matches of a pattern. `inverts`: what does not match counts as the match.
    case split(RegexProgram, SplitBehavior, inverts: Bool)
    /// Put a space before each piece that does not begin with one.
    case prefixSpace
    /// Write each byte as a character of the byte alphabet. Only where other steps follow; at the end the model
    /// reads bytes itself.
    case spellBytes
    /// Replace spaces by a visible character, and put one in front.
    case metaspace(replacement: [UInt8], prepends: MetaspacePrepending)
}

enum SplitBehavior: String, Sendable, CaseIterable {
    case removed = "Removed"
    case isolated = "Isolated"
    case mergedWithPrevious = "MergedWithPrevious"
    case mergedWithNext = "MergedWithNext"
    case contiguous = "Contiguous"
}

enum MetaspacePrepending: String, Sendable, CaseIterable { case first, never, always }

/// The steps of a pre-tokenizer and the model behind them: text between added tokens to ids.
struct PieceEncoder: Sendable {
    var steps: [PreTokenizerStep]
    var model: BPEModel

    /// Encodes `text[low..<high]`, `text` being the text in hand of the context.
    func encode(_ text: UnsafePointer<UInt8>, _ low: Int, _ high: Int, step: Int = 0, _ context: EncodingContext) {
        if low >= high { return }
        guard step < steps.count else {
            if let sink = context.pieceSink {
                sink(UnsafeBufferPointer(start: text + low, count: high - low))
            } else {
                model.encode(text + low, high - low, at: low, in: context)
            }
            return
        }
        switch steps[step] {
        case .split(let program, .isolated, _): isolate(program, text, low, high, step, context)
        case .split(let program, let behavior, let inverts):
            split(program, behavior, inverts, text, low, high, step, context)
        case .prefixSpace:
            if text[low] == 0x20 { return encode(text, low, high, step: step + 1, context) }
            rewrite(text, low, high, step, context) {
                $0.append([0x20], for: 0..<scalarLength(text[low])); $0.copy(text + low, 0..<high - low)
            }
        case .spellBytes:
            rewrite(text, low, high, step, context) { result in
                var i = low
                while i < high {
                    let next = i + scalarLength(text[i])
                    for byte in i..<next {
                        result.append(ByteAlphabet.texts[Int(text[byte])], for: i - low..<next - low)
                    }
                    i = next
                }
            }
        case .metaspace(let replacement, let prepends):
            metaspace(replacement, prepends, text, low, high, step, context)
        }
    }

    /// Every match and every text between is a piece.
    private func isolate(
        _ program: RegexProgram, _ text: UnsafePointer<UInt8>, _ low: Int, _ high: Int, _ step: Int,
        _ context: EncodingContext
    ) {
        var matches = RegexMatches(program, in: text + low, count: high - low, machine: context.machine)
        var done = low
        while let match = matches.next() {
            if low + match.lowerBound > done { encode(text, done, low + match.lowerBound, step: step + 1, context) }
            encode(text, low + match.lowerBound, low + match.upperBound, step: step + 1, context)
            done = low + match.upperBound
        }
        encode(text, done, high, step: step + 1, context)
    }

    private func split(
        _ program: RegexProgram, _ behavior: SplitBehavior, _ inverts: Bool, _ text: UnsafePointer<UInt8>, _ low: Int,
        _ high: Int, _ step: Int, _ context: EncodingContext
    ) {
        var joiner = PieceJoiner(behavior: behavior)
        func take(_ from: Int, _ to: Int, _ isMatch: Bool) {
            joiner.take(from, to, isMatch != inverts) { encode(text, $0, $1, step: step + 1, context) }
        }
        var matches = RegexMatches(program, in: text + low, count: high - low, machine: context.machine)
        var done = low
        while let match = matches.next() {
            if low + match.lowerBound > done { take(done, low + match.lowerBound, false) }
            take(low + match.lowerBound, low + match.upperBound, true)
            done = low + match.upperBound
        }
        if done < high { take(done, high, false) }
        joiner.finish { encode(text, $0, $1, step: step + 1, context) }
    }

    private func metaspace(
        _ replacement: [UInt8], _ prepends: MetaspacePrepending, _ text: UnsafePointer<UInt8>, _ low: Int, _ high: Int,
        _ step: Int, _ context: EncodingContext
    ) {
        let begins =
            text[low] == 0x20
            || UnsafeBufferPointer(start: text + low, count: high - low).starts(with: replacement)
        let isFirst = context.origin(low, high).lowerBound == 0
        let needsPrefix = !begins && (prepends == .always || (prepends == .first && isFirst))
        rewrite(text, low, high, step, context) { result in
            if needsPrefix { result.append(replacement, for: 0..<scalarLength(text[low])) }
            for i in 0..<high - low {
                if text[low + i] == 0x20 {
                    result.append(replacement, for: i..<i + 1)
                } else {
                    result.copy(text + low, i..<i + 1)
                }
            }
        }
    }

    /// Goes on with a rewritten copy of a piece.
    private func rewrite(
        _ text: UnsafePointer<UInt8>, _ low: Int, _ high: Int, _ step: Int, _ context: EncodingContext,
        _ write: (inout AlignedText) -> Void
    ) {
        var result = AlignedText(tracks: context.tracksOrigins)
        write(&result)
        context.withText(result, low, high) { encode($0, 0, $1, step: step + 1, context) }
    }
}

/// Joins matches and the texts between them into pieces, as a `SplitBehavior` says.
struct PieceJoiner {
    let behavior: SplitBehavior
    private var held: (low: Int, high: Int)?
    private var lastWasMatch = false

    init(behavior: SplitBehavior) { self.behavior = behavior }

    mutating func take(_ low: Int, _ high: Int, _ isMatch: Bool, _ emit: (Int, Int) -> Void) {
        defer { lastWasMatch = isMatch }
        switch behavior {
        case .isolated: emit(low, high)
        case .removed: if !isMatch { emit(low, high) }
        case .contiguous: hold(low, high, joins: isMatch == lastWasMatch, emit)
        case .mergedWithPrevious: hold(low, high, joins: isMatch && !lastWasMatch, emit)
        case .mergedWithNext: hold(low, high, joins: lastWasMatch && !isMatch, emit)
        }
    }

    private mutating func hold(_ low: Int, _ high: Int, joins: Bool, _ emit: (Int, Int) -> Void) {
        if let piece = held {
            if joins {
                held = (piece.low, high)
                return
            }
            emit(piece.low, piece.high)
        }
        held = (low, high)
    }

    mutating func finish(_ emit: (Int, Int) -> Void) {
        if let piece = held { emit(piece.low, piece.high) }
        held = nil
    }
}
