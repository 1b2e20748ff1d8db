/// The mutable state of one encoding: the text in hand, the ids so far, buffers, and a cache of pieces.
/// A context serves one thread at a time; `Tokenizer` keeps a pool of them.
final class EncodingContext: @unchecked Sendable {
    // @unchecked: handed from thread to thread through the pool's lock, never shared.

    let machine = RegexMachine()
    let merger = BPEMerger()

    private(set) var ids: [Int32] = []
    /// The bytes of the original text that each id stands for; kept only while `tracksRanges`.
    private(set) var ranges: [Range<Int>] = []
    private(set) var tracksRanges = false
    /// Whether rewritten texts are aligned to the original: for ranges, or because a step asks for positions.
    private(set) var tracksOrigins = false

    /// Where the text in hand came from: its first byte in the original, or an alignment if it was rewritten.
    var base = 0
    var alignment: Alignment?

    /// Given each piece instead of encoding it (for training).
    var pieceSink: ((UnsafeBufferPointer<UInt8>) -> Void)?

    /// Piece -> where its ids are in `cachedIDs`.
    private let cache = ByteTable(capacity: 1 << 12)
    private var cachedIDs: [Int32] = []
    private var cachedLengths: [Int32] = []
    /// By entry: the end of its ids; the start is the end of the entry before.
    private var cachedEnds: [Int32] = []
    private static let largestCache = 1 << 17

    func begin(tracksRanges: Bool, tracksOrigins: Bool, textCount: Int) {
        self.tracksRanges = tracksRanges
        self.tracksOrigins = tracksOrigins || tracksRanges
        ids.removeAll(keepingCapacity: true)
        ranges.removeAll(keepingCapacity: true)
        if tracksRanges { ranges.reserveCapacity(textCount / 4) }
        ids.reserveCapacity(textCount / 4 + 8)
        base = 0
        alignment = nil
        machine.refill(forText: textCount)
    }

    /// The bytes of the original text that `low..<high` of the text in hand stands for.
    func origin(_ low: Int, _ high: Int) -> Range<Int> {
        alignment?.origin(low, high) ?? base + low..<base + high
    }

    /// Puts a rewritten text in hand while `body` runs; it stands for `low..<high` of the one before.
    func withText(
        _ text: AlignedText, _ low: Int, _ high: Int, _ body: (_ text: UnsafePointer<UInt8>, _ count: Int) -> Void
    ) {
        let outer = (base, alignment)
        defer { (base, alignment) = outer }
        if let own = text.alignment {
            alignment = alignment.map { $0.part(low, high).followed(by: own) } ?? own.shifted(by: base + low)
        }
        text.bytes.withUnsafeBufferPointer { bytes in
            if let start = bytes.baseAddress { body(start, bytes.count) }
        }
    }

    @inline(__always) func emit(_ id: Int32, _ low: Int, _ high: Int) {
        ids.append(id)
        if tracksRanges { ranges.append(origin(low, high)) }
    }

    /// Emits the ids of a piece that begins at `start` of the text in hand.
    @inline(__always) func emit(_ symbols: BPEMerger, at start: Int) {
        ids.append(contentsOf: UnsafeBufferPointer(start: symbols.ids, count: symbols.count))
        if tracksRanges { emitRanges(UnsafeBufferPointer(start: symbols.lengths, count: symbols.count), at: start) }
    }

    private func emitRanges(_ lengths: UnsafeBufferPointer<Int32>, at start: Int) {
        var low = start
        for length in lengths {
            let high = low + Int(length)
            ranges.append(origin(low, high))
            low = high
        }
    }

    @inline(__always) func replay(
        _ piece: UnsafePointer<UInt8>, _ count: Int, hash: UInt32, at start: Int
    ) -> Bool {
        guard let found = cache.find(piece, count, hash: hash) else { return false }
        let entry = Int(found)
        let from = entry == 0 ? 0 : Int(cachedEnds[entry - 1])
        let to = Int(cachedEnds[entry])
        if to - from == 1 {
            ids.append(cachedIDs[from])
        } else {
            ids.append(contentsOf: cachedIDs[from..<to])
        }
        if tracksRanges { cachedLengths[from..<to].withUnsafeBufferPointer { emitRanges($0, at: start) } }
        return true
    }

    func remember(_ piece: UnsafePointer<UInt8>, _ count: Int, hash: UInt32, _ symbols: BPEMerger) {
        if cache.count >= EncodingContext.largestCache {
            cache.removeAll()
            cachedIDs.removeAll(keepingCapacity: true)
            cachedLengths.removeAll(keepingCapacity: true)
            cachedEnds.removeAll(keepingCapacity: true)
        }
        cache.insert(piece, count, hash: hash, Int32(cachedEnds.count))
        cachedIDs.append(contentsOf: UnsafeBufferPointer(start: symbols.ids, count: symbols.count))
        cachedLengths.append(contentsOf: UnsafeBufferPointer(start: symbols.lengths, count: symbols.count))
        cachedEnds.append(Int32(cachedIDs.count))
    }
}
