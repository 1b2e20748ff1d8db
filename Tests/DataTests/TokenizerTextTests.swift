import MartletCore
import Testing

@testable import MartletData

struct TokenizerTextTests {
    @Test func streamsNeverSplitACharacter() throws {
        let family = try #require(TokenizerGoldens.families().first { $0.name == "glm" })
        let text = "né 猫 \u{1F468}\u{200D}\u{1F469} x"
        var stream = family.tokenizer.streamDecoder()
        let parts = try family.tokenizer.encode(text).map { stream.feed($0) }
        #expect(parts.joined() == text && stream.finish() == "")
        #expect(parts.contains("") && !parts.joined().contains("\u{FFFD}"))
        // Half a character at the end comes out as one replacement; and the decoder is as new.
        let half = try family.tokenizer.encode("猫").dropLast()
        for id in half { #expect(stream.feed(id) == "") }
        #expect(stream.finish() == "\u{FFFD}")
        #expect(stream.feed(try #require(family.tokenizer.id(of: "a"))) == "a")
    }

    @Test func byteTokensWaitForTheEndOfTheirRun() throws {
        let tokenizer = try #require(TokenizerGoldens.families().first { $0.name == "gemma" }).tokenizer
        func id(_ byte: String) throws -> Int32 { try #require(tokenizer.id(of: "<0x\(byte)>")) }
        var stream = tokenizer.streamDecoder()
        for byte in ["E6", "B1", "89"] { #expect(stream.feed(try id(byte)) == "") }
        #expect(stream.feed(try #require(tokenizer.id(of: "a"))) == "汉a")
        // One wrong byte makes the whole run wrong, as in the reference.
        for byte in ["E6", "B1", "89", "FF"] { #expect(stream.feed(try id(byte)) == "") }
        #expect(stream.finish() == String(repeating: "\u{FFFD}", count: 4))
    }

    @Test func addedTokensAreCutOutFirst() throws {
        let tokens = [
            SmallTokenizer.added(3, "<s>"), SmallTokenizer.added(4, "<s>>", "special"),
            SmallTokenizer.added(5, "x", "single_word"),
            SmallTokenizer.added(6, "<m>", "lstrip", "rstrip"),
        ]
        let tokenizer = try Tokenizer(
            json: SmallTokenizer.json(["a", "b", " "], parts: ["added_tokens": .array(tokens)]))
        #expect(try tokenizer.encode("a<s>>b<s>a") == [0, 4, 1, 3, 0])
        #expect(try tokenizer.encode("x ax x") == [5, 2, 0, 2, 5])
        let (ids, ranges) = try tokenizer.encodeWithOffsets("a  <m> \nb <m>")
        #expect(ids == [0, 6, 1, 6] && ranges == [0..<1, 1..<8, 8..<9, 9..<13])
    }

    @Test func rangesAreBytesOfTheOriginal() throws {
        let qwen = try #require(TokenizerGoldens.families().first { $0.name == "qwen" }).tokenizer
        let text = "<think>e\u{301}x<|im_end|>é"
        let (ids, ranges) = try qwen.encodeWithOffsets(text)
        let bytes = Array(text.utf8)
        #expect(ranges.first == 0..<7 && ranges.last.map { $0.upperBound } == bytes.count)
        let end = try #require(qwen.id(of: "<|im_end|>"))
        let place = try #require(ids.firstIndex(of: end))
        #expect(String(decoding: bytes[ranges[place]], as: UTF8.self) == "<|im_end|>")
        // The composed character stands for the three bytes it was made of.
        #expect(ranges[1].lowerBound == 7 && ranges[1].upperBound == 10)
    }

    /// A long piece is cut where no merge can reach; the result must be that of the piece in one.
    @Test func seamsDoNotChangeTheResult() throws {
        for name in ["gemma", "deepseek", "gpt2"] {
            let family = try #require(TokenizerGoldens.families().first { $0.name == name })
            let model = family.tokenizer.encoder.model
            var random = TokenizerFileTests.Generator(state: 5)
            let words = ["the", " cat", "▁", "mo", "del", "s", "猫", "ой", "  ", "aaaa", "\n", "é", "х", "not"]
            for _ in 0..<60 {
                let text = (0..<40).map { _ in words.randomElement(using: &random) ?? "" }.joined()
                let bytes = Array(text.utf8)
                let whole = bytes.withUnsafeBufferPointer { model.encodeWithoutSeams($0) }
                let context = EncodingContext()
                bytes.withUnsafeBufferPointer { model.encode($0.baseAddress!, $0.count, at: 0, in: context) }
                #expect(context.ids == whole)
            }
        }
    }

    /// For rows of any length, the heap and the scan must agree with merging as the definition says.
    @Test func mergingFollowsTheDefinition() {
        var random = TokenizerFileTests.Generator(state: 9)
        let merges = PairTable(capacity: 8)
        var ranks: [UInt64: (rank: Int32, result: Int32)] = [:]
        for rank in 0..<30 {
            let (a, b) = (Int32.random(in: 0..<12, using: &random), Int32.random(in: 0..<12, using: &random))
            let result = Int32.random(in: 0..<12, using: &random)
            merges.set(a, b, rank: Int32(rank), result: result)
            ranks[PairTable.key(a, b)] = (Int32(rank), result)
        }
        for count in [0, 1, 2, 3, 7, 33, 48, 49, 50, 257] {
            let row = (0..<count).map { _ in Int32.random(in: 0..<4, using: &random) }
            let merger = BPEMerger()
            for id in row { merger.append(id, 1) }
            merger.merge(with: merges)
            var wanted = row
            while let best = wanted.indices.dropLast().compactMap({ i in
                ranks[PairTable.key(wanted[i], wanted[i + 1])].map { (i, $0) }
            }).min(by: { ($0.1.rank, $0.0) < ($1.1.rank, $1.0) }) {
                wanted.replaceSubrange(best.0...best.0 + 1, with: [best.1.result])
            }
            #expect(Array(UnsafeBufferPointer(start: merger.ids, count: merger.count)) == wanted, "\(count)")
            let lengths = UnsafeBufferPointer(start: merger.lengths, count: merger.count)
            #expect(lengths.map { Int($0) }.reduce(0, +) == count)
        }
    }

    @Test func oneTokenizerServesManyThreads() async throws {
        let tokenizer = try #require(TokenizerGoldens.families().first { $0.name == "qwen" }).tokenizer
        let texts = (0..<200).map { "text \($0): the cat's \(String(repeating: "mat ", count: $0 % 17)) 猫\($0)" }
        let wanted = try texts.map { try tokenizer.encode($0) }
        try await withThrowingTaskGroup(of: Bool.self) { group in
            for _ in 0..<8 {
                group.addTask { try zip(texts, wanted).allSatisfy { try tokenizer.encode($0) == $1 } }
            }
            for try await agrees in group { #expect(agrees) }
        }
    }

    @Test func tokensThatSwiftHoldsEqualAreKeptApart() throws {
        // The angstrom sign, the letter with a ring, and the letter with a combining ring.
        let tokenizer = try Tokenizer(json: SmallTokenizer.json(["\u{212B}", "\u{C5}", "A", "\u{30A}"]))
        #expect(try tokenizer.encode("\u{212B}\u{C5}A\u{30A}") == [0, 1, 2, 3])
        #expect(tokenizer.id(of: "\u{C5}") == 1)
    }

    @Test func growingNormalizersAreStopped() throws {
        let double: JSON = ["type": "Replace", "pattern": ["String": "a"], "content": "aaaa"]
        let steps = JSON.array([JSON](repeating: double, count: 40))
        let json = SmallTokenizer.json(["a"], parts: ["normalizer": ["type": "Sequence", "normalizers": steps]])
        let tokenizer = try Tokenizer(json: json)
        #expect(throws: MartletError.self) { try tokenizer.encode("a") }
        #expect(try tokenizer.encode("") == [])
    }
}
