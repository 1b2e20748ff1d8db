internal import MartletCore
internal import MartletData
internal import MartletModel

/// How the model continues a few prompts of the data: always the likeliest token, all prompts in one packed step, which is
/// made anew for each token. That needs no memory besides the run's own, and works wherever the run does.
struct Samples {
    private let model: Model
    private let text: Assembly.ModelText
    private let prompts: [[Int32]]

    /// Tokens that are made, at most.
    static let length = 48
    /// Tokens of a text that has no answer of its own: its opening.
    private static let opening = 16
    static let defaultCount = 3

    /// Up to `count` prompts from all over `examples`, as many as fit into the model's plan.
    init(_ model: Model, _ text: Assembly.ModelText, _ examples: ExampleSet, count: Int) throws(MartletError) {
        var prompts: [[Int32]] = [], free = model.plan.stepTokens
        for i in 0..<min(count, examples.count) {
            let prompt = Samples.prompt(of: try examples.example(i * examples.count / count))
            let room = min(model.plan.maximumLength, prompt.count + Samples.length)
            guard !prompt.isEmpty, prompt.count < model.plan.maximumLength, room <= free, !prompts.contains(prompt)
            else { continue }
            prompts.append(prompt)
            free -= room
        }
        self.model = model
        self.text = text
        self.prompts = prompts
    }

    /// What stands before the first answer.
    private static func prompt(of example: TokenizedExample) -> [Int32] {
        let start = example.isTrained.dropFirst().firstIndex(of: true) ?? 0
        return Array(example.tokens.prefix(start > 1 ? start : min(opening, example.tokens.count / 2)))
    }

    /// The continuations by the model as it is now.
    func write() throws(MartletError) -> [SampleText] {
        var sequences = prompts, open = Array(prompts.indices)
        for _ in 0..<Samples.length {
            open.removeAll { sequences[$0].count >= model.plan.maximumLength }
            guard !open.isEmpty else { break }
            var step = PackedStep()
            for i in open { step.append(sequences[i], isTrained: sequences[i].map { _ in false }) }
            let next = try model.likeliestNext(step)
            for (i, token) in zip(open, next) { sequences[i].append(token) }
            open.removeAll { sequences[$0].last.map(text.endTokens.contains) ?? true }
        }
        return zip(prompts, sequences).map { prompt, sequence in
            SampleText(
                prompt: text.encoder.decode(prompt, skipsSpecialTokens: false),
                text: text.encoder.decode(Array(sequence[prompt.count...]), skipsSpecialTokens: true))
        }
    }
}
