import MartletCore

@testable import MartletData

/// Builds small tokenizer files for tests.
enum SmallTokenizer {
    /// A file whose model has the given tokens, numbered in order, and merges.
    static func json(
        _ tokens: [String], merges: [[String]] = [], model: [String: JSON] = [:], parts: [String: JSON] = [:]
    ) -> JSON {
        var vocabulary = JSONObject()
        for (id, token) in tokens.enumerated() { vocabulary[token] = .integer(id) }
        var bpe: JSONObject = [
            "type": "BPE", "vocab": .object(vocabulary),
            "merges": .array(merges.map { .array($0.map { .string($0) }) }),
        ]
        for (key, value) in model.sorted(by: { $0.key < $1.key }) { bpe[key] = value }
        var file: JSONObject = ["version": "1.0", "model": .object(bpe)]
        for (key, value) in parts.sorted(by: { $0.key < $1.key }) { file[key] = value }
        return .object(file)
    }

    static func split(_ pattern: String, _ behavior: String = "Isolated", inverts: Bool = false) -> JSON {
        [
            "type": "Split", "pattern": ["Regex": .string(pattern)], "behavior": .string(behavior),
            "invert": .bool(inverts),
        ]
    }

    static func added(_ id: Int, _ text: String, _ flags: String...) -> JSON {
        var token: JSONObject = ["id": .integer(id), "content": .string(text), "normalized": false]
        for flag in flags { token[flag] = true }
        return .object(token)
    }

    /// The pieces that a pre-tokenizer makes of a text.
    static func pieces(_ text: String, _ preTokenizer: JSON) throws -> [String] {
        final class Box { var pieces: [String] = [] }
        let box = Box()
        let tokenizer = try Tokenizer(json: json(["a"], parts: ["pre_tokenizer": preTokenizer]))
        try tokenizer.forEachPiece(of: text) { box.pieces.append(String(decoding: $0, as: UTF8.self)) }
        return box.pieces
    }
}
