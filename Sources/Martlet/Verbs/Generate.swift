internal import MartletCore
internal import MartletData
internal import MartletModel

/// Text from a model: prompt in, tokens out one at a time, through a key/value cache.
public final class TextGenerator {
    /// One turn of a conversation.
    public struct Message: Sendable, Equatable {
        /// "system", "user", "assistant".
        public var role: String
        /// What was said.
        public var content: String

        /// A turn.
        public init(role: String, content: String) {
            self.role = role
            self.content = content
        }
    }

    /// Why a generation ended.
    public enum End: String, Sendable {
        /// The model said so.
        case endToken = "end token"
        /// `maxTokens` were made.
        case length
        /// The context is full.
        case context
        /// The receiver of the text asked.
        case stopped
    }

    /// What a generation made.
    public struct Result: Sendable {
        /// The text, without special tokens.
        public var text: String
        /// The tokens made, the end token included.
        public var tokens: [Int32]
        /// Tokens of the prompt.
        public var promptTokenCount: Int
        /// Why it ended.
        public var end: End
        /// Seconds that the prompt took.
        public var promptSeconds: Double
        /// Seconds that the other tokens took.
        public var seconds: Double

        /// Tokens made in a second.
        public var tokensPerSecond: Double { seconds > 0 ? Double(max(0, tokens.count - 1)) / seconds : 0 }
    }

    private let model: Model
    private let text: FolderText

    /// Reads a model folder, and an adapter to apply; `context` tokens fit, prompt and answer together (by
    /// default 2048, or as many as the model can take).
    public init(
        model folder: String, adapter: String? = nil, context: Int? = nil, compute: Compute = Compute()
    ) throws(MartletError) {
        let checkpoint = try Checkpoint(folder: folder)
        let limit = checkpoint.configuration.maximumPositions
        let context = context ?? min(2048, limit)
        guard context >= 2, context <= limit else {
            throw MartletError(
                "the context cannot be \(context) tokens", in: "--context",
                because: "the model's longest is \(limit) (max_position_embeddings)", fix: "give 2 to \(limit)")
        }
        text = try FolderText(folder: folder, checkpoint.configuration)
        let adapter = try adapter.map { (path) throws(MartletError) in
            try Adapter(folder: path, for: checkpoint.configuration)
        }
        model = try Model.forInference(checkpoint, adapter: adapter, .generation(context: context), compute)
    }

    /// Whether the model has a chat template.
    public var hasChatTemplate: Bool { text.template != nil }

    /// The prompt that the chat template makes of a conversation, up to where the model answers.
    public func prompt(for messages: [Message]) throws(MartletError) -> String {
        guard let template = text.template else {
            throw MartletError(
                "the model has no chat template",
                because: "neither chat_template.jinja nor tokenizer_config.json has one",
                fix: "continue plain text instead: --prompt TEXT --raw")
        }
        let messages = messages.map { JSON.object(["role": .string($0.role), "content": .string($0.content)]) }
        return try template.render(messages: messages, addsGenerationPrompt: true).text
    }

    /// Continues a prompt. `onText` gets the text as it comes, whole characters only, and says whether to go on.
    public func generate(
        _ prompt: String, isRendered: Bool = false, maxTokens: Int = 256,
        sampling: SamplingSettings = SamplingSettings(),
        onText: (String) -> Bool = { _ in true }
    ) throws(MartletError) -> Result {
        let tokens = try text.tokenizer.encode(prompt, addsSpecialTokens: !isRendered)
        guard !tokens.isEmpty else {
            throw MartletError(
                "the prompt is empty", because: "a model continues text", fix: "give at least one character")
        }
        var sampler = try Sampler(sampling), decoder = text.tokenizer.streamDecoder(skipsSpecialTokens: true)
        let generation = Generation(model), watch = Stopwatch()
        var logits = try generation.feed(tokens)
        let promptSeconds = watch.seconds, answerWatch = Stopwatch()
        var made: [Int32] = [], answer = "", end = End.length
        while made.count < maxTokens {
            let token = try sampler.next(logits)
            made.append(token)
            if text.endTokens.contains(token) { end = .endToken; break }
            let piece = decoder.feed(token)
            answer += piece
            if !piece.isEmpty, !onText(piece) { end = .stopped; break }
            guard made.count < maxTokens else { break }
            guard generation.count < model.plan.stepTokens else { end = .context; break }
            logits = try generation.feed([token])
        }
        let rest = decoder.finish()
        answer += rest
        if end != .stopped, !rest.isEmpty { _ = onText(rest) }
        return Result(
            text: answer, tokens: made, promptTokenCount: tokens.count, end: end, promptSeconds: promptSeconds,
            seconds: answerWatch.seconds)
    }
}

extension TextGenerator.Result {
    /// Counts and speed, in a line.
    public var summary: String {
        "prompt \(promptTokenCount) tokens in \(fixed(promptSeconds, 2)) s; wrote \(tokens.count) tokens, "
            + "\(fixed(tokensPerSecond, 1)) tokens/s; ended by \(end.rawValue)"
    }

    /// The result for machines.
    public var json: String {
        let object: JSON = [
            "text": .string(text), "tokens": .array(tokens.map { .integer(Int($0)) }),
            "prompt_tokens": .integer(promptTokenCount), "end": .string(end.rawValue),
            "prompt_seconds": .number(promptSeconds), "seconds": .number(seconds),
            "tokens_per_second": .number(tokensPerSecond),
        ]
        return object.text()
    }
}
