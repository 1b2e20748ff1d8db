/// The tokens and their ids: those of the model and the added ones.
final class Vocabulary: @unchecked Sendable {
    // @unchecked: the tables are written in init only.

    /// What all tokens decode to, one after the other, as UTF-8.
    private let arena: UnsafeMutablePointer<UInt8>
    /// By id: where its text is in the arena; an empty range where there is no such id.
    private let spans: [Range<Int>]
    private let modelIDs: ByteTable
    private let addedIDs: ByteTable
    /// By id: whether it is skipped when special tokens are.
    private let special: [Bool]

    /// The highest id accepted; a file that names a higher one is broken.
    static let highestID: Int32 = 1 << 22

    /// Highest id + 1.
    var count: Int { spans.count }

    struct Added {
        var id: Int32
        var text: String
        /// What it decodes to: the normalized text of a token that is matched in normalized text.
        var decodedText: [UInt8]
        /// As in `tokenizers`, a token counts as special by the text it decodes to.
        var isSpecial: Bool
    }

    /// `model` has no two equal texts, and no two tokens share an id unless they share the text.
    init(model: [(text: String, id: Int32)], added: [Added]) {
        let count = Int((model.map(\.id) + added.map(\.id)).max() ?? -1) + 1
        var spans = [Range<Int>](repeating: 0..<0, count: count)
        var special = [Bool](repeating: false, count: count)
        var arena: [UInt8] = []
        modelIDs = ByteTable(capacity: model.count)
        addedIDs = ByteTable(capacity: added.count)
        func store(_ text: some Sequence<UInt8>, _ id: Int32) {
            let start = arena.count
            arena += text
            spans[Int(id)] = start..<arena.count
        }
        let names = Set(added.filter(\.isSpecial).map { Array($0.text.utf8) })
        for (text, id) in model {
            store(text.utf8, id)
            _ = modelIDs.insert(Array(text.utf8), id)
        }
        for token in added {
            store(token.decodedText, token.id)
            _ = addedIDs.insert(Array(token.text.utf8), token.id)
            special[Int(token.id)] = names.contains(token.decodedText)
        }
        self.arena = .allocate(capacity: max(1, arena.count))
        self.arena.initialize(from: arena, count: arena.count)
        self.spans = spans
        self.special = special
    }

    deinit { arena.deallocate() }

    func contains(_ id: Int32) -> Bool { id >= 0 && Int(id) < spans.count && !spans[Int(id)].isEmpty }
    func isSpecial(_ id: Int32) -> Bool { id >= 0 && Int(id) < special.count && special[Int(id)] }

    /// The text of a token; empty for an id without a token. Valid as long as the vocabulary.
    func bytes(of id: Int32) -> UnsafeBufferPointer<UInt8> {
        guard contains(id) else { return UnsafeBufferPointer(start: nil, count: 0) }
        let span = spans[Int(id)]
        return UnsafeBufferPointer(start: arena + span.lowerBound, count: span.count)
    }

    /// The text of a token as decoding sees it.
    func token(of id: Int32) -> String? { contains(id) ? String(decoding: bytes(of: id), as: UTF8.self) : nil }

    func modelID(of text: String) -> Int32? { modelIDs.find(Array(text.utf8)) }
    func modelID(of text: UnsafeBufferPointer<UInt8>) -> Int32? { modelIDs.find(text) }
    func id(of text: String) -> Int32? { addedIDs.find(Array(text.utf8)) ?? modelID(of: text) }
}
