import MartletCore
import MartletData
import Testing

/// The data that the project ships.
@Suite struct DatasetExampleTests {
    let folder = #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined() + "/examples/data/"

    @Test(arguments: [
        ("birds.jsonl", DatasetFormat.chat, 200), ("birds-eval.jsonl", .chat, 23), ("tiny-chat.jsonl", .chat, 5),
        ("tiny-sharegpt.json", .shareGPT, 5), ("tiny-prompt-completion.jsonl", .promptCompletion, 5),
        ("tiny-alpaca.csv", .alpaca, 5), ("tiny-text.jsonl", .text, 5), ("tiny-text.txt", .text, 5),
    ])
    func loadsWhole(name: String, format: DatasetFormat, count: Int) throws {
        let dataset = try load(folder + name) { $0.textDocuments = .blankLine }
        #expect(dataset.report.files[0].format == format)
        #expect(dataset.count == count && dataset.report.files[0].rowCount == count)
        #expect(dataset.report.truncatedCount == 0 && dataset.report.trainedTokenCount > 0)
    }

    @Test func everyBirdAnswerHasTheSameForm() throws {
        let dataset = try load(folder + "birds.jsonl")
        for index in 0..<dataset.count {
            let trained = try dataset.inspect(index).pieces.filter(\.isTrained).map(\.text)
            #expect(trained.count == 1)
            #expect(trained.first?.hasPrefix("The ") == true)
            #expect(trained.first?.hasSuffix(". So says the martlet.<|im_end|>") == true)
        }
    }
}
