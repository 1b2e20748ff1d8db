import Martlet
import MartletCore
import MartletData
import MartletModel
import MartletTestSupport

/// A real model, tiny and untrained, with a little text to learn.
struct TinyRun {
    let folder: TemporaryFolder

    static let sparse = ModelConfiguration(
        modelType: "qwen3_moe", hiddenSize: 24, layerCount: 2, vocabularyCount: 64, queryHeadCount: 3,
        keyValueHeadCount: 1,
        headSize: 8, denseInnerSize: 40, ropeTheta: 10_000, maximumPositions: 256, tiesEmbeddings: false,
        experts: .init(expertCount: 5, expertsPerToken: 2, innerSize: 12, normalizesTopK: true), isSparse: [true, true])

    static let dense = ModelConfiguration(
        modelType: "qwen3", hiddenSize: 24, layerCount: 2, vocabularyCount: 64, queryHeadCount: 3, keyValueHeadCount: 1,
        headSize: 8, denseInnerSize: 40, ropeTheta: 10_000, maximumPositions: 256, tiesEmbeddings: true,
        isSparse: [false, false])

    init(_ configuration: ModelConfiguration = sparse) throws {
        folder = try TemporaryFolder()
        try RandomCheckpoint(configuration: configuration, seed: 3, standardDeviation: 0.1).write(
            to: folder.file("model"))
        let lines = (0..<40).map { i in
            let text = "\(i) and \(i + 1) make \(2 * i + 1), " + String(repeating: "la ", count: i % 7)
            return (["text": .string(text)] as JSON).text()
        }
        try AtomicFile.write(lines.joined(separator: "\n") + "\n", to: folder.file("text.jsonl"))
    }

    func recipe(_ name: String = "run", _ change: (inout Recipe) -> Void = { _ in }) -> Recipe {
        var recipe = Recipe(model: folder.file("model"), dataset: [folder.file("text.jsonl")])
        recipe.outputDir = folder.file(name)
        (recipe.maxLength, recipe.gradientAccumulationSteps, recipe.maxSteps, recipe.saveSteps) = (48, 2, 9, 4)
        (recipe.loraR, recipe.learningRate, recipe.threads) = (4, 0.01, 1)
        change(&recipe)
        return recipe
    }

    @discardableResult
    func run(
        _ recipe: Recipe, renderer: (any ConversationRenderer)? = nil,
        answer: (TrainingEvent) -> TrainingAnswer = { _ in .proceed }
    ) throws -> ToyRun {
        let text = Assembly.ModelText(encoder: Characters(), renderer: renderer)
        var events: [TrainingEvent] = []
        let result = try train(recipe, try Assembly(recipe: recipe).parts(text), stop: StopSwitch()) { event in
            events.append(event)
            return answer(event)
        }
        return ToyRun(result: result, events: events)
    }
}

/// One token a byte.
struct Characters: TextEncoder {
    var bosID: Int32? { nil }
    var eosID: Int32? { 0 }

    func encodeWithOffsets(
        _ text: String, addsSpecialTokens: Bool
    ) throws(MartletError) -> (ids: [Int32], ranges: [Range<Int>]) {
        let ids = text.utf8.map { Int32($0 % 63) + 1 }
        return (ids, ids.indices.map { $0..<$0 + 1 })
    }

    func decode(_ ids: [Int32], skipsSpecialTokens: Bool) -> String { "\(ids)" }
}
