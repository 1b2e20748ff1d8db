import MartletCore

/// Byte-pair encoding: a piece of text to token ids. Immutable once made; the mutable parts are in `EncodingContext`.
final class BPEModel: @unchecked Sendable {
    // @unchecked: the tables are written in init only.

    struct Options {
        var unknownToken: String?
        var fusesUnknown = false
        var fallsBackToBytes = false
        var ignoresMerges = false
        var continuingPrefix: [UInt8] = []
        var endSuffix: [UInt8] = []
    }

    let vocabulary: Vocabulary
    /// Whether a unit is a byte (the text is byte-level) or a Unicode scalar.
    let unitsAreBytes: Bool
    private let options: Options
    private let merges: PairTable
    /// From a piece of text to the token that is exactly it. Byte-level tokens are keyed by the bytes they stand for.
    private let pieces: ByteTable
    /// Ids of the single bytes (byte-level) or the ASCII characters; -1: not in the vocabulary.
    private var units = [Int32](repeating: -1, count: 256)
    /// Ids of the tokens '<0x00>' to '<0xFF>'; -1: not in the vocabulary.
    private var fallback = [Int32](repeating: -1, count: 256)
    private var unknown: Int32 = -1
    /// Where a long piece may be cut without changing the result; nil where that is not certain.
    private var seams: BPESeams?

    private static let longestCached = 128
    private static let shortestCut = 32

    /// `tokens` are the model's own, as its vocabulary spells them.
    init(
        vocabulary: Vocabulary, tokens: [(text: String, id: Int32)],
        merges list: [(left: Int32, right: Int32, result: Int32)], options: Options, unitsAreBytes: Bool
    ) throws(MartletError) {
        self.vocabulary = vocabulary
        self.unitsAreBytes = unitsAreBytes
        self.options = options
        merges = PairTable(capacity: list.count)
        for (rank, merge) in list.enumerated() {
            merges.set(merge.left, merge.right, rank: Int32(rank), result: merge.result)
        }
        pieces = ByteTable(capacity: tokens.count)
        var texts = [[UInt8]](repeating: [], count: vocabulary.count)
        for (text, id) in tokens {
            let key =
                unitsAreBytes ? Array(text.utf8).withUnsafeBufferPointer(ByteAlphabet.bytes(of:)) : Array(text.utf8)
            if let key, pieces.insert(key, id) { texts[Int(id)] = key }
        }
        for unit in 0..<256 {
            let key = unitsAreBytes ? [UInt8(unit)] : utf8(UInt32(unit))
            if unitsAreBytes || unit < 0x80 { units[unit] = pieces.find(key) ?? -1 }
            let hex = String(unit, radix: 16, uppercase: true)
            fallback[unit] = vocabulary.modelID(of: "<0x\(hex.count < 2 ? "0" : "")\(hex)>") ?? -1
        }
        if let token = options.unknownToken {
            guard let id = vocabulary.modelID(of: token) else {
                throw MartletError(
                    "the unknown token '\(token)' is not in the vocabulary", in: "key \"model.unk_token\"",
                    fix: "add it to \"model.vocab\" or set unk_token to null")
            }
            unknown = id
        }
        seams = makeSeams(list, texts)
    }

    private func makeSeams(
        _ list: [(left: Int32, right: Int32, result: Int32)], _ texts: [[UInt8]]
    ) -> BPESeams? {
        let everyUnitKnown =
            unitsAreBytes
            ? !units.contains(-1) : options.fallsBackToBytes && !fallback.contains(-1)
        guard everyUnitKnown, !options.ignoresMerges, options.continuingPrefix.isEmpty, options.endSuffix.isEmpty else {
            return nil
        }
        let opaque = Set(unitsAreBytes ? [] : fallback)
        return BPESeams(list, unitsAreBytes: unitsAreBytes) { opaque.contains($0) ? nil : texts[Int($0)] }
    }

    /// Appends the ids of a piece (UTF-8, or any bytes if units are bytes). It begins at `start` of the text in hand.
    func encode(_ piece: UnsafePointer<UInt8>, _ count: Int, at start: Int, in context: EncodingContext) {
        if count == 0 { return }
        if let seams, count >= BPEModel.shortestCut {
            var from = 0
            while from < count {
                let to = seams.firstCut(in: piece, from: from, count: count)
                encodeWhole(piece + from, to - from, at: start + from, in: context)
                from = to
            }
        } else {
            encodeWhole(piece, count, at: start, in: context)
        }
    }

    /// The ids of a piece encoded in one, for comparison.
    func encodeWithoutSeams(_ piece: UnsafeBufferPointer<UInt8>) -> [Int32] {
        let merger = BPEMerger()
        if let start = piece.baseAddress { tokenize(start, piece.count, merger) }
        return Array(UnsafeBufferPointer(start: merger.ids, count: merger.count))
    }

    @inline(__always) private func encodeWhole(
        _ piece: UnsafePointer<UInt8>, _ count: Int, at start: Int, in context: EncodingContext
    ) {
        if count > BPEModel.longestCached {
            tokenize(piece, count, context.merger)
            context.emit(context.merger, at: start)
            return
        }
        let hash = ByteTable.hash(piece, count)
        if context.replay(piece, count, hash: hash, at: start) { return }
        tokenize(piece, count, context.merger)
        context.remember(piece, count, hash: hash, context.merger)
        context.emit(context.merger, at: start)
    }

    private func tokenize(_ piece: UnsafePointer<UInt8>, _ count: Int, _ merger: BPEMerger) {
        merger.removeAll()
        if options.ignoresMerges, let id = pieces.find(piece, count, hash: ByteTable.hash(piece, count)) {
            merger.append(id, count)
            return
        }
        var pendingUnknown = 0
        // Units without a token and without an unknown token leave no id; the next id stands for them too.
        var dropped = 0
        var i = 0
        while i < count {
            let length = unitsAreBytes ? 1 : scalarLength(piece[i])
            let id = unit(piece + i, length, isFirst: i == 0, isLast: i + length == count)
            if id >= 0 {
                flushUnknown(&pendingUnknown, merger)
                merger.append(id, length + dropped)
                dropped = 0
            } else if fallBack(piece + i, length, isFirst: i == 0, isLast: i + length == count, merger) {
                // Its byte tokens are in.
            } else if unknown >= 0 {
                if !options.fusesUnknown { flushUnknown(&pendingUnknown, merger) }
                pendingUnknown += length
            } else {
                dropped += length
            }
            i += length
        }
        flushUnknown(&pendingUnknown, merger)
        merger.merge(with: merges)
    }

    @inline(__always) private func flushUnknown(_ length: inout Int, _ merger: BPEMerger) {
        if length > 0 {
            merger.append(unknown, length)
            length = 0
        }
    }

    /// The id of one unit, or -1.
    @inline(__always) private func unit(
        _ text: UnsafePointer<UInt8>, _ length: Int, isFirst: Bool, isLast: Bool
    ) -> Int32 {
        if options.continuingPrefix.isEmpty, options.endSuffix.isEmpty {
            if unitsAreBytes || length == 1 { return units[Int(text[0])] }
            return pieces.find(text, length, hash: ByteTable.hash(text, length)) ?? -1
        }
        return spelled(text, length, isFirst: isFirst, isLast: isLast).withUnsafeBufferPointer {
            vocabulary.modelID(of: $0) ?? -1
        }
    }

    /// A unit as the vocabulary spells it, with the prefix of units within a word and the suffix of the last.
    private func spelled(_ text: UnsafePointer<UInt8>, _ length: Int, isFirst: Bool, isLast: Bool) -> [UInt8] {
        let own =
            unitsAreBytes
            ? ByteAlphabet.texts[Int(text[0])] : Array(UnsafeBufferPointer(start: text, count: length))
        return (isFirst ? [] : options.continuingPrefix) + own + (isLast ? options.endSuffix : [])
    }

    /// Appends the byte tokens of an unknown unit; false if they are not all there.
    private func fallBack(
        _ text: UnsafePointer<UInt8>, _ length: Int, isFirst: Bool, isLast: Bool, _ merger: BPEMerger
    ) -> Bool {
        guard options.fallsBackToBytes else { return false }
        let bytes = spelled(text, length, isFirst: isFirst, isLast: isLast)
        guard bytes.allSatisfy({ fallback[Int($0)] >= 0 }) else { return false }
        // The bytes may be more than those of the text: the spelling of a byte, a suffix.
        for (i, byte) in bytes.enumerated() { merger.append(fallback[Int(byte)], i < length ? 1 : 0) }
        return true
    }
}

/// The places in a text across which no merge can reach.
///
/// A merge that joined the units a and b would make a token in which b follows a. So between two units that follow
/// each other in no token that a merge makes, a piece can be cut, and both parts encoded alone, to the same result.
struct BPESeams {
    /// By pair of bytes (or of ASCII characters): whether some merge joins them.
    private var joined = [Bool](repeating: false, count: 1 << 16)
    private let others = PairTable(capacity: 64)
    private let unitsAreBytes: Bool

    /// nil if `text` cannot tell what a part of a merge stands for.
    init?(_ merges: [(left: Int32, right: Int32, result: Int32)], unitsAreBytes: Bool, text: (Int32) -> [UInt8]?) {
        self.unitsAreBytes = unitsAreBytes
        for merge in merges {
            guard let left = text(merge.left), let right = text(merge.right), !left.isEmpty, !right.isEmpty else {
                return nil
            }
            var start = left.count - 1
            while !unitsAreBytes, start > 0, left[start] & 0xC0 == 0x80 { start -= 1 }
            let a = unit(left[start...]), b = unit(right[...])
            if a < 256, b < 256 {
                joined[Int(a << 8 | b)] = true
            } else {
                others.set(Int32(a), Int32(b), rank: 0, result: 0)
            }
        }
    }

    private func unit(_ bytes: ArraySlice<UInt8>) -> UInt32 {
        bytes.withUnsafeBufferPointer { bytes in
            guard let start = bytes.baseAddress else { return 0 }
            return unitsAreBytes ? UInt32(start[0]) : decodeScalar(start).scalar
        }
    }

    /// The end of the first part of `piece[from..<count]`.
    func firstCut(in piece: UnsafePointer<UInt8>, from: Int, count: Int) -> Int {
        joined.withUnsafeBufferPointer { joined in
            if unitsAreBytes {
                var i = from + 1
                while i < count, joined[Int(piece[i - 1]) << 8 | Int(piece[i])] { i += 1 }
                return i
            }
            var (a, length) = decodeScalar(piece + from)
            var i = from + length
            while i < count {
                let b: UInt32
                (b, length) = decodeScalar(piece + i)
                let isJoined =
                    a < 256 && b < 256
                    ? joined[Int(a << 8 | b)] : others.find(Int32(a), Int32(b)).rank != Int32.max
                if !isJoined { break }
                a = b
                i += length
            }
            return i
        }
    }
}
