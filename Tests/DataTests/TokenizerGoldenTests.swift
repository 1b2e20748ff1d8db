import Foundation
import MartletCore
import Testing

@testable import MartletData

/// What Hugging Face tokenizers does with the same files (tools/goldens/tokenizer_files.py).
enum TokenizerGoldens {
    /// A committed file, or that of the folder named by MARTLET_TOKENIZER_GOLDENS (a longer run).
    static func read(_ name: String) throws -> JSON {
        let folder = ProcessInfo.processInfo.environment["MARTLET_TOKENIZER_GOLDENS"]
        let url =
            try folder.map { URL(fileURLWithPath: $0 + "/\(name).json") }
            ?? #require(Bundle.module.url(forResource: name, withExtension: "json", subdirectory: "TokenizerGoldens"))
        return try JSON(parsing: String(decoding: Data(contentsOf: url), as: UTF8.self))
    }

    static func families() throws -> [(name: String, tokenizer: Tokenizer, results: [JSON])] {
        try #require(read("families").array).map { family in
            let tokenizer = try Tokenizer(json: #require(family["tokenizer"]))
            return try (#require(family["name"]?.string), tokenizer, #require(family["results"]?.array))
        }
    }

    static func ids(_ json: JSON?) -> [Int32]? { json?.array?.compactMap { $0.integer.map { Int32($0) } } }
}

struct TokenizerGoldenTests {
    @Test func publishedKindsAgreeWithTheReference() throws {
        for (name, tokenizer, results) in try TokenizerGoldens.families() {
            for result in results { try check(tokenizer, result, name) }
            #expect(results.count >= 20)
        }
    }

    @Test func randomTokenizersAgreeWithTheReference() throws {
        let cases = try #require(TokenizerGoldens.read("components").array)
        for (index, record) in cases.enumerated() {
            let tokenizer = try Tokenizer(json: #require(record["tokenizer"]))
            for result in record["results"]?.array ?? [] { try check(tokenizer, result, "components[\(index)]") }
        }
        #expect(cases.count >= 70)
    }

    private func check(_ tokenizer: Tokenizer, _ result: JSON, _ name: String) throws {
        let text = try #require(result["text"]?.string)
        let ids = try #require(TokenizerGoldens.ids(result["ids"]))
        let full = TokenizerGoldens.ids(result["with_special"]) ?? ids
        let decoded = try #require(result["decoded"]?.string)
        let place: Comment = "\(name): \(text.debugDescription)"
        let (tracked, ranges) = try tokenizer.encodeWithOffsets(text)
        #expect(try tokenizer.encode(text) == ids, place)
        #expect(tracked == ids, place)
        #expect(try tokenizer.encode(text, addsSpecialTokens: true) == full, place)
        // Strings that are spelled differently are equal in Swift; bytes are not.
        #expect(Array(tokenizer.decode(full).utf8) == Array(decoded.utf8), place)
        let skipped = result["without_special"]?.string ?? decoded
        #expect(Array(tokenizer.decode(full, skipsSpecialTokens: true).utf8) == Array(skipped.utf8), place)
        #expect(Array(stream(tokenizer, full).utf8) == Array(decoded.utf8), place)
        #expect(
            ranges.count == ids.count && ranges.allSatisfy { $0.lowerBound >= 0 && $0.upperBound <= text.utf8.count })
        if let offsets = TokenizerGoldens.ids(result["offsets"]), isNFC(text) {
            #expect(characters(ranges, of: text) == offsets, place)
        }
    }

    private func stream(_ tokenizer: Tokenizer, _ ids: [Int32]) -> String {
        var decoder = tokenizer.streamDecoder()
        var text = ""
        for id in ids { text += decoder.feed(id) }
        return text + decoder.finish()
    }

    /// Where normalization rewrites, Martlet's ranges are those of whole runs, the reference's those of characters.
    private func isNFC(_ text: String) -> Bool {
        Array(text.utf8).withUnsafeBufferPointer { UnicodeForm.nfc.apply(to: $0, tracks: false) == nil }
    }

    /// Ranges of bytes as the reference gives them: in scalars, widened to whole ones, flat.
    private func characters(_ ranges: [Range<Int>], of text: String) -> [Int32] {
        var starts: [Int] = [0]
        for scalar in text.unicodeScalars { starts.append((starts.last ?? 0) + UTF8.width(scalar)) }
        return ranges.flatMap { range in
            let low = starts.lastIndex { $0 <= range.lowerBound } ?? 0
            let high = starts.firstIndex { $0 >= range.upperBound } ?? 0
            return [Int32(low), Int32(high)]
        }
    }
}

struct TokenizerUnicodeTests {
    private func hash(_ bytes: some Sequence<UInt8>) -> String {
        var value: UInt64 = 0xCBF2_9CE4_8422_2325
        for byte in bytes { value = (value ^ UInt64(byte)) &* 0x100_0000_01B3 }
        let hex = String(value, radix: 16)
        return String(repeating: "0", count: 16 - hex.count) + hex
    }

    private static let scalars = (UInt32(0)...0x10FFFF).compactMap(UnicodeScalar.init)

    private func text(_ scalars: some Sequence<UnicodeScalar>) -> [UInt8] {
        var view = String.UnicodeScalarView()
        view.append(contentsOf: scalars)
        return Array(String(view).utf8)
    }

    /// The range as runs of scalars see it: surrogates neither begin nor end it.
    private func withoutSurrogates(_ range: ClosedRange<UInt32>) -> ClosedRange<UInt32>? {
        let low = (0xD800...0xDFFF).contains(range.lowerBound) ? 0xE000 : range.lowerBound
        let high = (0xD800...0xDFFF).contains(range.upperBound) ? 0xD7FF : range.upperBound
        return low <= high ? low...high : nil
    }

    @Test func characterClassesAreThoseOfTheReference() throws {
        let classes = try #require(TokenizerGoldens.read("unicode")["classes"]?.object)
        for (pattern, facts) in classes where pattern.first?.isLetter == false {
            guard case .set(let set) = try RegexParser.parse(pattern) else {
                Issue.record("\(pattern) is not one class")
                continue
            }
            let runs = set.union(ScalarSet([0xD800...0xDFFF])).ranges.compactMap(withoutSurrogates)
            let edges = runs.flatMap { [$0.lowerBound, $0.upperBound] }
            let bytes = edges.flatMap { edge in [16, 8, 0].map { UInt8(truncatingIfNeeded: edge >> $0) } }
            let surrogates = runs.contains { $0.contains(0xD800) } ? 0x800 : 0
            #expect(runs.map(\.count).reduce(0, +) - surrogates == facts.array?[0].integer, "\(pattern)")
            #expect(hash(bytes) == facts.array?[1].string, "\(pattern)")
        }
        #expect(classes.count > 50)
    }

    @Test func tablesHoldWhatTheirSetsHold() throws {
        for pattern in [#"\p{L}"#, #"[^\s\p{L}\p{N}]"#, #"\p{Cn}"#, "é", "[a-z]", "[^a]"] {
            guard case .set(let set) = try RegexParser.parse(pattern) else { continue }
            let table = ScalarTable(set)
            defer { table.deallocate() }
            for scalar in TokenizerUnicodeTests.scalars where scalar.value % 61 == 0 || scalar.value < 0x900 {
                let bytes = Array(String(scalar).utf8)
                let length = bytes.withUnsafeBufferPointer { table.length(at: $0.baseAddress!) }
                guard length == (set.contains(scalar.value) ? bytes.count : 0) else {
                    Issue.record("\(pattern) U+\(String(scalar.value, radix: 16))")
                    break
                }
            }
        }
    }

    @Test func normalizationFormsAreThoseOfTheReference() throws {
        let facts = try TokenizerGoldens.read("unicode")
        let marks = try Array(#require(facts["marks"]?.string).unicodeScalars)
        let all = TokenizerUnicodeTests.scalars
        // The list of `unicode_facts` in the script.
        var texts = [text(all[..<0x2FA20])]
        texts += marks.map { mark in text(all[..<0x1200].flatMap { [$0, mark] }) }
        let machine = RegexMachine()
        machine.refill(forText: 1 << 20)
        let steps: [(String, NormalizerStep)] = [
            ("NFC", .form(.nfc)), ("NFD", .form(.nfd)), ("NFKC", .form(.nfkc)), ("NFKD", .form(.nfkd)),
            ("Lowercase", .lowercase),
        ]
        for (name, step) in steps {
            let expected = try #require(facts["forms"]?[name]?.array)
            if name == "Lowercase" { texts = [text(all[..<0x1F000])] }
            #expect(texts.count == expected.count)
            for (text, wanted) in zip(texts, expected) {
                #expect(hash([step].normalize(text, machine)) == wanted.string, "\(name)")
            }
        }
    }

    @Test func classSplittersAreThoseOfTheReference() throws {
        let classes = try #require(TokenizerGoldens.read("unicode")["classes"])
        let all = text(TokenizerUnicodeTests.scalars[..<0x1FC00])
        for name in ["Digits", "Punctuation", "Whitespace", "WhitespaceSplit"] {
            let part: JSON = ["type": .string(name), "individual_digits": true]
            let file = try TokenizerFile(["pre_tokenizer": part])
            let tokenizer = try Tokenizer(
                json: ["pre_tokenizer": part, "model": ["type": "BPE", "vocab": ["a": 0], "merges": []]])
            #expect(try file.preTokenizer().count == 1)
            let pieces = Collector()
            try tokenizer.forEachPiece(of: String(decoding: all, as: UTF8.self)) { piece in
                if pieces.count > 0 { pieces.bytes.append(0x0A) }
                pieces.bytes += piece
                pieces.count += 1
            }
            #expect(pieces.count == classes[name]?.array?[0].integer, "\(name)")
            #expect(hash(pieces.bytes) == classes[name]?.array?[1].string, "\(name)")
        }
    }

    private final class Collector {
        var bytes: [UInt8] = []
        var count = 0
    }
}
