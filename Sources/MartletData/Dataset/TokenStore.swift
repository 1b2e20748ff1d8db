import MartletCore

/// Tokenised examples laid end to end, a word a token: the id, and in the top bit whether it is trained. In memory up to
/// a budget, in a temporary file beyond.
struct TokenStore: Sendable {
    private enum Words: Sendable { case memory([UInt32]), file(ByteFile) }

    private let words: Words
    /// First word of each example, and the word count at the end.
    private let offsets: [Int]

    var count: Int { offsets.count - 1 }
    var isInMemory: Bool { if case .memory = words { true } else { false } }

    func length(_ index: Int) -> Int { offsets[index + 1] - offsets[index] }

    func example(_ index: Int) throws(MartletError) -> TokenizedExample {
        let start = offsets[index], length = length(index)
        switch words {
        case .memory(let words): return TokenizedExample(words: words[start..<start + length])
        case .file(let file):
            let bytes = try file.bytes(at: start * 4, count: length * 4)
            return TokenizedExample(words: bytes.withUnsafeBytes { Array($0.bindMemory(to: UInt32.self)) }[...])
        }
    }

    /// Collects examples.
    struct Writer {
        private var memory: [UInt32] = []
        private var spool: SpoolWriter?
        private var offsets = [0]
        private let budget: Int

        init(budget: Int) { self.budget = budget }

        mutating func append(_ example: TokenizedExample) throws(MartletError) {
            offsets.append((offsets.last ?? 0) + example.tokens.count)
            if let spool { return try write(example.words, to: spool) }
            memory.append(contentsOf: example.words)
            guard memory.count * 4 > budget else { return }
            let spool = try SpoolWriter(name: "the tokenised data")
            try write(memory, to: spool)
            memory = []
            self.spool = spool
        }

        private func write(_ words: [UInt32], to spool: SpoolWriter) throws(MartletError) {
            var outcome: Result<Void, MartletError> = .success(())
            words.withUnsafeBytes { bytes in outcome = Result { () throws(MartletError) in try spool.append(bytes) } }
            try outcome.get()
        }

        func finish() throws(MartletError) -> TokenStore {
            TokenStore(
                words: try spool.map { (spool) throws(MartletError) in .file(try spool.finish()) } ?? .memory(memory),
                offsets: offsets)
        }
    }
}

extension TokenizedExample {
    fileprivate static let trainedBit: UInt32 = 1 << 31

    /// The words of a store; also what fingerprints are made of.
    var words: [UInt32] {
        zip(tokens, isTrained).map { token, isTrained in
            UInt32(bitPattern: token) & ~TokenizedExample.trainedBit | (isTrained ? TokenizedExample.trainedBit : 0)
        }
    }

    fileprivate init(words: ArraySlice<UInt32>) {
        tokens = words.map { Int32(bitPattern: $0 & ~TokenizedExample.trainedBit) }
        isTrained = words.map { $0 & TokenizedExample.trainedBit != 0 }
    }
}
