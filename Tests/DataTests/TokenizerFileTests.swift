import Foundation
import MartletCore
import Testing

@testable import MartletData

struct TokenizerFileTests {
    /// What is wrong with each file, and a word that the message must have.
    static let broken: [(JSON, String)] = [
        ([], "object"), ([:], "model"), (["version": "2.0", "model": [:]], "version"),
        (["model": ["type": "Unigram", "vocab": []]], "Unigram"),
        (["model": ["type": "WordPiece", "vocab": [:]]], "WordPiece"),
        (["model": ["type": "BPE", "merges": []]], "vocab"), (["model": ["type": "BPE", "vocab": ["a": 0]]], "merges"),
        (["model": ["type": "BPE", "vocab": ["a": "0"], "merges": []]], "id"),
        (SmallTokenizer.json([], model: ["vocab": ["a": -1]]), "id"),
        (SmallTokenizer.json([], model: ["vocab": ["a": 99_999_999_999]]), "id"),
        (SmallTokenizer.json([], model: ["vocab": ["a": 1.5]]), "id"),
        (SmallTokenizer.json([], model: ["vocab": ["a": 7, "b": 7]]), "7"),
        (SmallTokenizer.json(["a"], merges: [["a", "b"]]), "merge 0"),
        (SmallTokenizer.json(["a", "b"], merges: [["a", "b"]]), "'ab'"),
        (SmallTokenizer.json(["a"], merges: [["a"]]), "merge 0"),
        (SmallTokenizer.json(["a"], model: ["merges": ["a a a"]]), "merge 0"),
        (SmallTokenizer.json(["a"], model: ["merges": [3]]), "merge 0"),
        (SmallTokenizer.json(["a"], model: ["unk_token": "u"]), "'u'"),
        (SmallTokenizer.json(["a"], model: ["unk_token": 3]), "unk_token"),
        (SmallTokenizer.json(["a"], model: ["dropout": 0.1]), "dropout"),
        (SmallTokenizer.json(["a"], model: ["fuse_unk": "no"]), "fuse_unk"),
        (SmallTokenizer.json(["a"], parts: ["normalizer": ["type": "Precompiled"]]), "Precompiled"),
        (SmallTokenizer.json(["a"], parts: ["normalizer": ["type": "Strip"]]), "strip_left"),
        (
            SmallTokenizer.json(
                ["a"], parts: ["normalizer": ["type": "Replace", "pattern": ["Regex": "("], "content": ""]]), "'('"
        ),
        (
            SmallTokenizer.json(["a"], parts: ["normalizer": ["type": "Replace", "pattern": "x", "content": ""]]),
            "Regex"
        ),
        (SmallTokenizer.json(["a"], parts: ["pre_tokenizer": ["type": "BertPreTokenizer"]]), "BertPreTokenizer"),
        (SmallTokenizer.json(["a"], parts: ["pre_tokenizer": SmallTokenizer.split(" ", "Sideways")]), "Isolated"),
        (
            SmallTokenizer.json(
                ["a"], parts: ["pre_tokenizer": ["type": "Sequence", "pretokenizers": ["type": "Digits"]]]), "list"
        ),
        (
            SmallTokenizer.json(["a"], parts: ["pre_tokenizer": ["type": "Metaspace", "replacement": "ab"]]),
            "one character"
        ),
        (SmallTokenizer.json(["a"], parts: ["decoder": ["type": "WordPiece"]]), "WordPiece"),
        (SmallTokenizer.json(["a"], parts: ["decoder": "x"]), "decoder"),
        (SmallTokenizer.json(["a"], parts: ["post_processor": ["type": "RobertaProcessing"]]), "RobertaProcessing"),
        (SmallTokenizer.json(["a"], parts: ["post_processor": ["type": "TemplateProcessing", "single": []]]), "once"),
        (
            SmallTokenizer.json(
                ["a"],
                parts: ["post_processor": ["type": "TemplateProcessing", "single": [["SpecialToken": ["id": "x"]]]]]),
            "'x'"
        ), (SmallTokenizer.json(["a"], parts: ["added_tokens": [:]]), "added_tokens"),
        (SmallTokenizer.json(["a"], parts: ["added_tokens": [["id": 1]]]), "content"),
        (SmallTokenizer.json(["a"], parts: ["added_tokens": [["id": -4, "content": "x"]]]), "id"),
        (SmallTokenizer.json(["a"], parts: ["added_tokens": [SmallTokenizer.added(3, "a")]]), "0"),
        (SmallTokenizer.json(["a"], parts: ["added_tokens": [SmallTokenizer.added(0, "b")]]), "another"),
        (
            SmallTokenizer.json(
                ["a"], parts: ["added_tokens": [SmallTokenizer.added(1, "b"), SmallTokenizer.added(1, "c")]]), "twice"
        ),
        (
            SmallTokenizer.json(
                ["a"], parts: ["added_tokens": [SmallTokenizer.added(1, "b"), SmallTokenizer.added(2, "b")]]), "twice"
        ),
    ]

    @Test func brokenFilesAreRefusedWithARemedy() {
        for (json, word) in TokenizerFileTests.broken {
            let error = #expect(throws: MartletError.self, "\(json.text())") { _ = try Tokenizer(json: json) }
            #expect(error?.description.contains(word) == true, "\(word): \(error?.description ?? "")")
            #expect(error?.remedy != nil, "\(json.text())")
        }
    }

    @Test func aFolderIsRead() throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("tokenizer-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        func write(_ name: String, _ json: JSON) throws {
            try json.text().write(to: folder.appendingPathComponent(name), atomically: true, encoding: .utf8)
        }
        let missing = #expect(throws: MartletError.self) { _ = try Tokenizer(folder: folder.path) }
        #expect(missing?.location?.hasSuffix("tokenizer.json") == true)
        let tokens = [SmallTokenizer.added(1, "<s>", "special"), SmallTokenizer.added(2, "</s>", "special")]
        try write("tokenizer.json", SmallTokenizer.json(["a"], parts: ["added_tokens": .array(tokens)]))
        try write("special_tokens_map.json", ["bos_token": "<old>", "unk_token": "a"])
        try write("tokenizer_config.json", ["bos_token": ["content": "<s>"], "eos_token": "</s>", "pad_token": .null])
        let tokenizer = try Tokenizer(folder: folder.path)
        #expect(tokenizer.specialTokens == ["bos_token": "<s>", "eos_token": "</s>", "unk_token": "a"])
        #expect(tokenizer.bosID == 1 && tokenizer.eosID == 2 && tokenizer.padID == nil)
        #expect(tokenizer.vocabularyCount == 3 && tokenizer.token(of: 2) == "</s>" && tokenizer.token(of: 3) == nil)
        #expect(tokenizer.token(of: -1) == nil && tokenizer.id(of: "nothing") == nil)
        try write("tokenizer.json", SmallTokenizer.json(["a"], merges: [["a", "x"]]))
        let error = #expect(throws: MartletError.self) { _ = try Tokenizer(folder: folder.path) }
        #expect(error?.location?.contains("tokenizer.json") == true)
    }

    /// Damaged files, at random but always the same: an error or a tokenizer that works, never a trap.
    @Test func damagedFilesNeverTrap() throws {
        for seed in TokenizerFileTests.seeds { _ = try Tokenizer(json: seed) }
        var random = Generator(state: 20)
        var loaded = 0
        for round in 0..<4800 {
            let base = TokenizerFileTests.seeds[round % TokenizerFileTests.seeds.count]
            var json = base
            if round % 3 == 0 {
                guard let parsed = try? JSON(parsing: String(decoding: scratched(base.text(), &random), as: UTF8.self))
                else { continue }
                json = parsed
            } else {
                for _ in 0..<Int.random(in: 1...2, using: &random) { json = damaged(json, &random) }
            }
            guard let tokenizer = try? Tokenizer(json: json) else { continue }
            loaded += 1
            for text in ["", "ab <s> ba\u{301}", "汉 \u{10FFFF}ab ab\r\n"] {
                guard let (ids, ranges) = try? tokenizer.encodeWithOffsets(text, addsSpecialTokens: true) else {
                    continue
                }
                #expect(ids.count == ranges.count && ranges.allSatisfy { $0.upperBound <= text.utf8.count })
                _ = tokenizer.decode(ids + [-5, .max, 3], skipsSpecialTokens: true)
            }
        }
        #expect(loaded > 200, "most damage should not be fatal, or little is tested")
    }

    struct Generator: RandomNumberGenerator {
        var state: UInt64
        mutating func next() -> UInt64 {
            state &+= 0x9E37_79B9_7F4A_7C15
            var z = state
            z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
            z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
            return z ^ z >> 31
        }
    }

    private static let seeds: [JSON] = [
        SmallTokenizer.json(
            ["a", "b", "ab", "Ġ", "Ġab", "</w>"], merges: [["a", "b"], ["Ġ", "ab"]],
            parts: [
                "added_tokens": [
                    SmallTokenizer.added(6, "<s>", "special", "lstrip"), SmallTokenizer.added(2, "ab", "normalized"),
                ],
                "normalizer": [
                    "type": "Sequence",
                    "normalizers": [["type": "NFC"], ["type": "Strip", "strip_left": true, "strip_right": false]],
                ],
                "pre_tokenizer": [
                    "type": "Sequence",
                    "pretokenizers": [
                        SmallTokenizer.split(#" ?[a-z]+|\s+(?!\S)|."#),
                        ["type": "ByteLevel", "add_prefix_space": true, "use_regex": false],
                    ],
                ], "decoder": ["type": "ByteLevel"],
                "post_processor": [
                    "type": "TemplateProcessing",
                    "single": [
                        ["SpecialToken": ["id": "<s>", "type_id": 0]], ["Sequence": ["id": "A", "type_id": 0]],
                    ],
                    "special_tokens": ["<s>": ["id": "<s>", "ids": [6], "tokens": ["<s>"]]],
                ],
            ]),
        SmallTokenizer.json(
            ["<unk>", "a", "b", "ab", "▁", "▁a", "<0xE6>", "<0xB1>", "<0x89>"], merges: [["a", "b"], ["▁", "a"]],
            model: ["unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "end_of_word_suffix": ""],
            parts: [
                "normalizer": ["type": "Replace", "pattern": ["String": " "], "content": "▁"],
                "pre_tokenizer": ["type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true],
                "decoder": [
                    "type": "Sequence",
                    "decoders": [
                        ["type": "Replace", "pattern": ["Regex": "▁+"], "content": " "], ["type": "ByteFallback"],
                        ["type": "Fuse"],
                        ["type": "Strip", "content": " ", "start": 1, "stop": 0],
                    ],
                ],
            ]),
    ]

    private func scratched(_ text: String, _ random: inout Generator) -> [UInt8] {
        var bytes = Array(text.utf8)
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            let i = Int.random(in: 0..<bytes.count, using: &random)
            switch Int.random(in: 0..<4, using: &random) {
            case 0: bytes[i] = UInt8.random(in: 0...255, using: &random)
            case 1: bytes.remove(at: i)
            case 2: bytes.insert(bytes[Int.random(in: 0..<bytes.count, using: &random)], at: i)
            default: bytes[i] = "0123456789{}[]\",:abc \\".utf8.randomElement(using: &random) ?? 0
            }
        }
        return bytes
    }

    /// The value with one part, anywhere in it, replaced or left out.
    private func damaged(_ json: JSON, depth: Int = 0, _ random: inout Generator) -> JSON {
        let values: [JSON] = [
            .null, true, -1, 0, 3, 7, 2_147_483_648, 1e300, "", "a", "ab", "Ġ", "(a*)*b", #"\p{L}"#, [], [:], ["a"],
            ["a": 0],
            ["type": "NFD"], ["type": "ByteLevel", "add_prefix_space": true], ["type": "Sequence", "decoders": []],
            "<unk>",
        ]
        let stops = depth > 1 && Int.random(in: 0..<6, using: &random) == 0
        switch json {
        case .array(var items) where !items.isEmpty && !stops:
            let i = Int.random(in: 0..<items.count, using: &random)
            items[i] = damaged(items[i], depth: depth + 1, &random)
            if Int.random(in: 0..<8, using: &random) == 0 { items.append(items[i]) }
            return .array(items)
        case .object(var members) where members.count > 0 && !stops:
            let key = members.keys[Int.random(in: 0..<members.count, using: &random)]
            members[key] =
                depth > 0 && Int.random(in: 0..<8, using: &random) == 0
                ? nil : damaged(members[key] ?? .null, depth: depth + 1, &random)
            return .object(members)
        default:
            // Half of the time something of the same kind, which is more often read than refused.
            let same = values.filter { $0.kind == json.kind }
            let choice = Bool.random(using: &random) && !same.isEmpty ? same : values
            return choice.randomElement(using: &random) ?? .null
        }
    }
}
