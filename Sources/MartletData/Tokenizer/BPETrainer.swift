package import MartletCore

/// Trains a byte-level BPE tokenizer in the manner of Qwen: NFC, the split pattern of Qwen, ByteLevel.
package enum BPETrainer {
    /// The split pattern of Qwen's tokenizers.
    static let qwenPattern =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"#
        + #"|\s+(?!\S)|\s+"#

    /// Learns merges from texts; returns a whole `tokenizer.json`. The same texts give the same tokenizer.
    ///
    /// Ids: the 256 bytes in the order of their characters, then the merges, then the special tokens. Each merge joins
    /// the most frequent pair of neighbours, of equally frequent ones that of lowest ids. Texts with too few pairs give
    /// a smaller vocabulary.
    /// - Parameters:
    ///   - vocabularyCount: how many tokens, special ones included.
    ///   - specialTokens: added tokens; `isSpecial`: left out by decoding that skips special tokens.
    package static func train(
        texts: [String], vocabularyCount: Int, specialTokens: [(text: String, isSpecial: Bool)]
    ) throws(MartletError) -> JSON {
        guard vocabularyCount >= 256 + specialTokens.count, vocabularyCount <= Int(Vocabulary.highestID) else {
            throw MartletError(
                "a vocabulary of \(vocabularyCount) tokens cannot be trained",
                because:
                    "256 bytes and \(specialTokens.count) special tokens are in it; the most is "
                    + "\(Vocabulary.highestID)",
                fix: "ask for at least \(256 + specialTokens.count) tokens")
        }
        // Special tokens are cut out of the texts, so that no merge is learned from them.
        let empty = try Tokenizer(json: file(tokens: alphabet, merges: [], specialTokens))
        let words = WordCounts()
        for text in texts { try empty.forEachPiece(of: text, words.add) }
        var learner = MergeLearner(words)
        learner.learn(upTo: vocabularyCount - specialTokens.count)
        return file(tokens: learner.tokenTexts, merges: learner.mergeTexts, specialTokens)
    }

    /// The characters of the bytes, in order.
    private static var alphabet: [String] {
        ByteAlphabet.scalars.sorted().compactMap { UnicodeScalar($0).map { String($0) } }
    }

    private static func file(
        tokens: [String], merges: [(left: String, right: String)], _ special: [(text: String, isSpecial: Bool)]
    ) -> JSON {
        var vocabulary = JSONObject()
        for (id, token) in tokens.enumerated() { vocabulary[token] = .integer(id) }
        let added = special.enumerated().map { index, token -> JSON in
            [
                "id": .integer(tokens.count + index), "content": .string(token.text), "single_word": false,
                "lstrip": false,
                "rstrip": false, "normalized": false, "special": .bool(token.isSpecial),
            ]
        }
        let bytes: JSON = ["type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false]
        let split: JSON = [
            "type": "Split", "pattern": ["Regex": .string(qwenPattern)], "behavior": "Isolated", "invert": false,
        ]
        return [
            "version": "1.0", "truncation": .null, "padding": .null, "added_tokens": .array(added),
            "normalizer": ["type": "NFC"],
            "pre_tokenizer": ["type": "Sequence", "pretokenizers": [split, bytes]],
            "post_processor": bytes, "decoder": bytes,
            "model": [
                "type": "BPE", "dropout": .null, "unk_token": .null, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": .object(vocabulary),
                "merges": .array(merges.map { [.string($0.left), .string($0.right)] }),
            ],
        ]
    }
}

/// The different pieces of texts and how often each occurs.
private final class WordCounts {
    private let index = ByteTable(capacity: 1 << 12)
    private(set) var words: [[UInt8]] = []
    private(set) var counts: [Int] = []

    func add(_ piece: UnsafeBufferPointer<UInt8>) {
        if let known = index.find(piece) {
            counts[Int(known)] += 1
        } else {
            _ = index.insert(Array(piece), Int32(words.count))
            words.append(Array(piece))
            counts.append(1)
        }
    }
}

/// Learns merges from counted words. Counts of pairs are kept up to date merge by merge; a heap holds candidates, and
/// one whose count fell since it was pushed goes back with its present count when it comes up.
private struct MergeLearner {
    private struct Pair: Hashable { var left: Int32, right: Int32 }
    private struct Candidate { var count: Int, pair: Pair }

    private var words: [[Int32]]
    private let wordCounts: [Int]
    private var tokens: [[UInt8]]
    private var merges: [Pair] = []
    private var counts: [Pair: Int] = [:]
    private var places: [Pair: Set<Int>] = [:]
    private var heap: [Candidate] = []

    init(_ words: WordCounts) {
        // Ids follow the order of the characters, not that of the bytes.
        let order = (0..<256).sorted { ByteAlphabet.scalars[$0] < ByteAlphabet.scalars[$1] }
        var id = [Int32](repeating: 0, count: 256)
        for (rank, byte) in order.enumerated() { id[byte] = Int32(rank) }
        tokens = order.map { [UInt8($0)] }
        self.words = words.words.map { $0.map { id[Int($0)] } }
        wordCounts = words.counts
        for (index, word) in self.words.enumerated() {
            for i in 0..<max(0, word.count - 1) {
                let pair = Pair(left: word[i], right: word[i + 1])
                counts[pair, default: 0] += wordCounts[index]
                places[pair, default: []].insert(index)
            }
        }
        for (pair, count) in counts { push(Candidate(count: count, pair: pair)) }
    }

    mutating func learn(upTo tokenCount: Int) {
        var ids = [[UInt8]: Int32](uniqueKeysWithValues: tokens.enumerated().map { ($1, Int32($0)) })
        while tokens.count < tokenCount, let top = pop() {
            let count = counts[top.pair] ?? 0
            if count != top.count {
                if count > 0 { push(Candidate(count: count, pair: top.pair)) }
                continue
            }
            merges.append(top.pair)
            // Another pair may have made the same token already: then both merges have the one id.
            let token = tokens[Int(top.pair.left)] + tokens[Int(top.pair.right)]
            let id = ids[token] ?? Int32(tokens.count)
            if Int(id) == tokens.count {
                ids[token] = id
                tokens.append(token)
            }
            apply(top.pair, id)
        }
    }

    var tokenTexts: [String] { tokens.map(text) }
    var mergeTexts: [(left: String, right: String)] {
        merges.map { (text(tokens[Int($0.left)]), text(tokens[Int($0.right)])) }
    }

    private func text(_ bytes: [UInt8]) -> String {
        String(decoding: bytes.flatMap { ByteAlphabet.texts[Int($0)] }, as: UTF8.self)
    }

    /// Merges a pair in all words that have it.
    private mutating func apply(_ pair: Pair, _ new: Int32) {
        counts[pair] = nil
        var changed: Set<Pair> = []
        for index in places.removeValue(forKey: pair) ?? [] {
            let count = wordCounts[index]
            let old = words[index]
            var word: [Int32] = []
            word.reserveCapacity(old.count)
            var i = 0
            while i < old.count {
                guard i + 1 < old.count, old[i] == pair.left, old[i + 1] == pair.right else {
                    word.append(old[i])
                    i += 1
                    continue
                }
                if let before = word.last {
                    change(Pair(left: before, right: pair.left), -count)
                    add(Pair(left: before, right: new), count, index, &changed)
                }
                if i + 2 < old.count {
                    change(Pair(left: pair.right, right: old[i + 2]), -count)
                    add(Pair(left: new, right: old[i + 2]), count, index, &changed)
                }
                word.append(new)
                i += 2
            }
            words[index] = word
        }
        for pair in changed {
            if let count = counts[pair], count > 0 { push(Candidate(count: count, pair: pair)) }
        }
    }

    private mutating func change(_ pair: Pair, _ amount: Int) {
        if let count = counts[pair] { counts[pair] = count + amount }
    }

    private mutating func add(_ pair: Pair, _ amount: Int, _ word: Int, _ changed: inout Set<Pair>) {
        counts[pair, default: 0] += amount
        places[pair, default: []].insert(word)
        changed.insert(pair)
    }

    // MARK: Heap: most frequent first, then lowest ids

    private static func precedes(_ a: Candidate, _ b: Candidate) -> Bool {
        if a.count != b.count { return a.count > b.count }
        return (a.pair.left, a.pair.right) < (b.pair.left, b.pair.right)
    }

    private mutating func push(_ candidate: Candidate) {
        heap.append(candidate)
        var i = heap.count - 1
        while i > 0, MergeLearner.precedes(candidate, heap[(i - 1) / 2]) {
            heap[i] = heap[(i - 1) / 2]
            i = (i - 1) / 2
        }
        heap[i] = candidate
    }

    private mutating func pop() -> Candidate? {
        guard let top = heap.first, let last = heap.popLast() else { return nil }
        guard !heap.isEmpty else { return top }
        var i = 0
        while true {
            var child = 2 * i + 1
            guard child < heap.count else { break }
            if child + 1 < heap.count, MergeLearner.precedes(heap[child + 1], heap[child]) { child += 1 }
            guard MergeLearner.precedes(heap[child], last) else { break }
            heap[i] = heap[child]
            i = child
        }
        heap[i] = last
        return top
    }
}
