package import MartletCore
import Synchronization

/// Text to token ids and back, as a `tokenizer.json` of Hugging Face `tokenizers` describes it.
///
/// The order of things: added tokens are cut out of the raw text; what is between them is normalized; added tokens
/// that want normalized text are cut out of that; the rest is cut into pieces, and the model encodes each piece.
/// `truncation` and `padding` of the file are not applied: the length of an example is the packing's concern.
package final class Tokenizer: Sendable {
    let vocabulary: Vocabulary
    let normalizer: [NormalizerStep]
    let encoder: PieceEncoder
    let rawTokens: AddedTokenMatcher
    let normalizedTokens: AddedTokenMatcher
    let decoder: [DecoderStep]
    /// What the post-processor puts before and after a text.
    let leadingIDs: [Int32]
    let trailingIDs: [Int32]

    /// The texts of `bos_token`, `eos_token`, `pad_token`... by these names, from `tokenizer_config.json`.
    package let specialTokens: [String: String]

    private let contexts = Mutex<[EncodingContext]>([])

    /// The longest text accepted, in bytes.
    private static let longestText = 1 << 30

    init(_ parts: TokenizerParts, specialTokens: [String: String]) {
        vocabulary = parts.vocabulary
        normalizer = parts.normalizer
        encoder = PieceEncoder(steps: parts.preTokenizer, model: parts.model)
        decoder = parts.decoder
        leadingIDs = parts.leadingIDs
        trailingIDs = parts.trailingIDs
        self.specialTokens = specialTokens
        let raw = parts.addedTokens.filter { !$0.isNormalized }
        let normalized = parts.addedTokens.filter { $0.isNormalized }
        rawTokens = AddedTokenMatcher(raw, texts: raw.map { Array($0.text.utf8) })
        normalizedTokens = AddedTokenMatcher(
            normalized, texts: normalized.map { Array(parts.vocabulary.bytes(of: $0.id)) })
    }

    /// Highest id + 1: how many rows of an embedding the tokenizer can name.
    package var vocabularyCount: Int { vocabulary.count }
    package func id(of token: String) -> Int32? { vocabulary.id(of: token) }
    package func token(of id: Int32) -> String? { vocabulary.token(of: id) }
    package var bosID: Int32? { specialTokens["bos_token"].flatMap(id(of:)) }
    package var eosID: Int32? { specialTokens["eos_token"].flatMap(id(of:)) }
    package var padID: Int32? { specialTokens["pad_token"].flatMap(id(of:)) }

    /// The ids of a text. Special tokens written in the text become their ids in any case; `addsSpecialTokens` also
    /// adds those of the post-processor (such as a BOS).
    ///
    /// Throws if a pattern of the tokenizer needs far more steps than a sane one, or the text is above 1 GiB.
    package func encode(_ text: String, addsSpecialTokens: Bool = false) throws(MartletError) -> [Int32] {
        try withContext { context throws(MartletError) in
            try encode(text, tracksRanges: false, context)
            return addsSpecialTokens ? leadingIDs + context.ids + trailingIDs : context.ids
        }
    }

    /// The ids of a text, and for each the range of UTF-8 bytes of `text` it stands for.
    ///
    /// Ranges are exact where the normalizer changed nothing; they may begin or end within a character, where a
    /// byte-level token does. A character that the normalizer made stands for the whole run it was made from (for
    /// NFC: a base and its marks), and one put in front of a text for the first character of it. A token of the
    /// post-processor has an empty range at the start or the end of the text.
    package func encodeWithOffsets(
        _ text: String, addsSpecialTokens: Bool = false
    ) throws(MartletError) -> (ids: [Int32], ranges: [Range<Int>]) {
        try withContext { context throws(MartletError) in
            try encode(text, tracksRanges: true, context)
            guard addsSpecialTokens else { return (context.ids, context.ranges) }
            let end = text.utf8.count
            let ranges = leadingIDs.map { _ in 0..<0 } + context.ranges + trailingIDs.map { _ in end..<end }
            return (leadingIDs + context.ids + trailingIDs, ranges)
        }
    }

    /// The text of ids. Bytes that are no UTF-8 become U+FFFD; unknown ids are left out.
    package func decode(_ ids: [Int32], skipsSpecialTokens: Bool = false) -> String {
        var stream = streamDecoder(skipsSpecialTokens: skipsSpecialTokens)
        for id in ids { stream.append(id) }
        return stream.finish()
    }

    package func streamDecoder(skipsSpecialTokens: Bool = false) -> StreamDecoder {
        StreamDecoder(vocabulary, decoder, skipsSpecialTokens: skipsSpecialTokens)
    }

    /// Calls `body` with each piece that the model would encode, added tokens left out.
    func forEachPiece(of text: String, _ body: @escaping (UnsafeBufferPointer<UInt8>) -> Void) throws(MartletError) {
        try withContext { context throws(MartletError) in
            context.pieceSink = body
            defer { context.pieceSink = nil }
            try encode(text, tracksRanges: false, context)
        }
    }

    // MARK: Encoding

    private func withContext<Result>(
        _ body: (EncodingContext) throws(MartletError) -> Result
    ) throws(MartletError) -> Result {
        let context = contexts.withLock { $0.popLast() } ?? EncodingContext()
        defer { contexts.withLock { $0.append(context) } }
        return try body(context)
    }

    private func encode(_ text: String, tracksRanges: Bool, _ context: EncodingContext) throws(MartletError) {
        var text = text
        text.makeContiguousUTF8()
        guard text.utf8.count <= Tokenizer.longestText else {
            throw MartletError(
                "a text is too long to tokenize", because: "it has \(text.utf8.count) bytes; the limit is 1 GiB",
                fix: "cut the text into parts, one example a part")
        }
        context.begin(tracksRanges: tracksRanges, tracksOrigins: encoder.needsOrigins, textCount: text.utf8.count)
        text.utf8.withContiguousStorageIfAvailable { bytes in
            guard let start = bytes.baseAddress else { return }
            if rawTokens.isEmpty { return encodeSegment(start, 0, bytes.count, context) }
            rawTokens.forEachPart(of: start, count: bytes.count) { low, high, id in
                if id >= 0 { context.emit(id, low, high) } else { encodeSegment(start, low, high, context) }
            }
        }
        guard !context.machine.isExhausted else {
            throw MartletError(
                "a pattern of tokenizer.json takes too long", in: "one of: \(patterns.joined(separator: "   "))",
                because: "matching it against a text of \(text.utf8.count) bytes backtracks without end",
                fix: "use the pattern of the published model, or one without nested repeats")
        }
    }

    /// The patterns that encoding runs, for the message above.
    private var patterns: [String] {
        let splits = encoder.steps.compactMap {
            if case .split(let program, _, _) = $0 { program.pattern } else { nil }
        }
        return splits + normalizer.compactMap { if case .replace(let program, _) = $0 { program.pattern } else { nil } }
    }

    /// Encodes a part of the raw text that holds no raw added token.
    private func encodeSegment(_ text: UnsafePointer<UInt8>, _ low: Int, _ high: Int, _ context: EncodingContext) {
        let segment = UnsafeBufferPointer(start: text + low, count: high - low)
        guard let normalized = normalizer.apply(to: segment, tracks: context.tracksOrigins, machine: context.machine)
        else {
            return encodeNormalized(text, low, high, context)
        }
        context.withText(normalized, low, high) { encodeNormalized($0, 0, $1, context) }
    }

    private func encodeNormalized(_ text: UnsafePointer<UInt8>, _ low: Int, _ high: Int, _ context: EncodingContext) {
        if normalizedTokens.isEmpty { return encoder.encode(text, low, high, context) }
        normalizedTokens.forEachPart(of: text + low, count: high - low) { from, to, id in
            if id >= 0 {
                context.emit(id, low + from, low + to)
            } else {
                encoder.encode(text, low + from, low + to, context)
            }
        }
    }
}

extension PieceEncoder {
    /// Whether a step asks where in the original a piece begins.
    var needsOrigins: Bool {
        steps.contains { if case .metaspace(_, .first) = $0 { true } else { false } }
    }
}
