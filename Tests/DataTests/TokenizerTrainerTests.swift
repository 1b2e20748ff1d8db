import MartletCore
import Testing

@testable import MartletData

struct TokenizerTrainerTests {
    @Test func trainingAgreesWithTheReference() throws {
        let family = try #require(TokenizerGoldens.read("families").array?.first)
        let wanted = try #require(family["tokenizer"]?["model"])
        let count = try #require(wanted["vocab"]?.object?.count)
        let text = try #require(family["training"]?.string)
        let trained = try BPETrainer.train(
            texts: [text], vocabularyCount: count + 2,
            specialTokens: [("<|a|>", isSpecial: true), ("<b>", isSpecial: false)])
        #expect(trained["model"]?["vocab"] == wanted["vocab"])
        #expect(trained["model"]?["merges"] == wanted["merges"])
        let tokenizer = try Tokenizer(json: JSON(parsing: trained.text()))
        #expect(tokenizer.vocabularyCount == count + 2)
        #expect(tokenizer.id(of: "<|a|>") == Int32(count))
        let ids = try tokenizer.encode("Die<|a|>Katze<b>")
        #expect(tokenizer.decode(ids) == "Die<|a|>Katze<b>")
        #expect(tokenizer.decode(ids, skipsSpecialTokens: true) == "DieKatze<b>")
    }

    @Test func sameTextsSameTokenizer() throws {
        let texts = (0..<40).map { "line \($0): a few words that come again, and \($0 * 37 % 11) others" }
        let first = try BPETrainer.train(texts: texts, vocabularyCount: 400, specialTokens: [])
        #expect(try BPETrainer.train(texts: texts, vocabularyCount: 400, specialTokens: []) == first)
        #expect(
            try BPETrainer.train(texts: texts.map { $0.uppercased() }, vocabularyCount: 400, specialTokens: []) != first
        )
    }

    @Test func smallTextsGiveSmallVocabularies() throws {
        let trained = try BPETrainer.train(texts: ["abab"], vocabularyCount: 1000, specialTokens: [])
        #expect(trained["model"]?["merges"] == [["a", "b"], ["ab", "ab"]])
        #expect(
            try BPETrainer.train(texts: [], vocabularyCount: 256, specialTokens: [])["model"]?["vocab"]?.object?.count
                == 256)
    }

    @Test func tooFewTokensAreRefused() {
        let error = #expect(throws: MartletError.self) {
            try BPETrainer.train(texts: ["a"], vocabularyCount: 256, specialTokens: [("<x>", isSpecial: true)])
        }
        #expect(error?.remedy?.contains("257") == true)
    }
}
