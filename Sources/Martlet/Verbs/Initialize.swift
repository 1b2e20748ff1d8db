internal import MartletCore
internal import MartletData
internal import MartletModel

/// A new, untrained model folder: random weights, a tokenizer, a chat template.
public struct Initialization: Sendable {
    /// Sizes and sources.
    public struct Settings: Sendable {
        /// Decoder layers.
        public var layers = 4
        /// Width.
        public var hidden = 256
        /// Query heads.
        public var heads = 4
        /// Key/value heads.
        public var keyValueHeads = 2
        /// Size of a head.
        public var headSize = 64
        /// Experts of each layer's mixture; 0 makes a dense model.
        public var experts = 0
        /// Experts that a token is sent to.
        public var expertsPerToken = 2
        /// Inner size of an expert.
        public var expertInner = 256
        /// Inner size of a dense MLP.
        public var denseInner = 768
        /// The most tokens of the vocabulary; a small text fills fewer.
        public var vocabulary = 4096
        /// Longest context.
        public var context = 4096
        /// Whether the embedding is the head.
        public var tiesEmbeddings = false
        /// Text to learn the tokenizer from; nil: a token a byte.
        public var text: String?
        /// Seed of the weights.
        public var seed = 0
        /// Standard deviation of the weights.
        public var standardDeviation = 0.02
        /// The weights' dtype on disk.
        public var dtype = DType.bfloat16

        /// The defaults: a small dense model.
        public init() {}
    }

    /// Writes the folder; it appears complete or not at all. Returns what it is, in a line.
    public static func run(into out: String, settings: Settings = Settings()) throws(MartletError) -> String {
        try settings.validate()
        let scratch = try ScratchFolder("martlet-init")
        let tokenizer = try settings.writeTokenizer(into: scratch.path)
        let configuration = settings.configuration(tokenizer)
        // The same checks that reading the folder later makes.
        _ = try ModelConfiguration(json: configuration.json(dtype: settings.dtype))
        try RandomCheckpoint(
            configuration: configuration, seed: UInt64(bitPattern: Int64(settings.seed)),
            standardDeviation: Float(settings.standardDeviation), dtype: settings.dtype
        ).write(to: out, tokenizerFolder: scratch.path)
        let active =
            configuration.experts == nil ? "" : ", \(formatCount(configuration.activeParameterCount)) active a token"
        return "\(out): \(configuration.modelType), \(formatCount(configuration.parameterCount)) parameters\(active), "
            + "vocabulary \(configuration.vocabularyCount)"
    }
}

extension Initialization.Settings {
    fileprivate func validate() throws(MartletError) {
        func require(_ isRight: Bool, _ option: String, _ found: Any, _ wanted: String) throws(MartletError) {
            guard !isRight else { return }
            throw MartletError(
                "a model cannot have this size", in: "--\(option)", because: "it is \(found)", fix: "give \(wanted)")
        }
        try require((1...1024).contains(layers), "layers", layers, "1 to 1024")
        try require((2...65536).contains(hidden), "hidden", hidden, "2 to 65536")
        try require((1...1024).contains(heads), "heads", heads, "1 to 1024")
        try require(
            keyValueHeads >= 1 && heads % max(keyValueHeads, 1) == 0, "kv-heads", keyValueHeads,
            "a divisor of the \(heads) heads")
        try require(
            (2...1024).contains(headSize) && headSize % 2 == 0, "head-dim", headSize, "an even number up to 1024")
        try require((0...4096).contains(experts), "experts", experts, "0 (dense) to 4096")
        try require(
            experts == 0 || (1...experts).contains(expertsPerToken), "experts-per-token", expertsPerToken,
            "1 to the number of experts")
        try require((1...1_000_000).contains(expertInner), "expert-inner", expertInner, "1 to 1000000")
        try require((1...1_000_000).contains(denseInner), "dense-inner", denseInner, "1 to 1000000")
        try require(
            (260...1_000_000).contains(vocabulary), "vocab", vocabulary,
            "260 to 1000000: 256 bytes and the special tokens at least")
        try require((2...1 << 24).contains(context), "context", context, "2 to \(1 << 24)")
        try require(
            standardDeviation > 0 && standardDeviation < 10, "std", standardDeviation, "a number above 0 and below 10")
    }

    fileprivate func configuration(_ tokenizer: Tokenizer) -> ModelConfiguration {
        ModelConfiguration(
            modelType: experts == 0 ? "qwen3" : "qwen3_moe", hiddenSize: hidden, layerCount: layers,
            vocabularyCount: tokenizer.vocabularyCount, queryHeadCount: heads, keyValueHeadCount: keyValueHeads,
            headSize: headSize,
            denseInnerSize: denseInner, ropeTheta: 10000, maximumPositions: context, tiesEmbeddings: tiesEmbeddings,
            experts: experts == 0
                ? nil
                : .init(
                    expertCount: experts, expertsPerToken: expertsPerToken, innerSize: expertInner, normalizesTopK: true
                ),
            isSparse: [Bool](repeating: experts > 0, count: layers), endTokens: tokenizer.eosID.map { [Int($0)] } ?? [])
    }

    /// tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json.
    fileprivate func writeTokenizer(into folder: String) throws(MartletError) -> Tokenizer {
        var source = ""
        if let text {
            source = String(decoding: try FileSystem.read(text), as: UTF8.self)
            guard !source.isEmpty else {
                throw MartletError(
                    "the text is empty", in: text, because: "no tokenizer can be learned from it",
                    fix: "give another --text")
            }
        }
        let trained = try BPETrainer.train(
            texts: source.isEmpty ? [] : [source], vocabularyCount: text == nil ? 259 : vocabulary,
            specialTokens: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map { ($0, isSpecial: true) })
        func write(_ name: String, _ text: String) throws(MartletError) {
            try AtomicFile.write(text, to: FileSystem.join(folder, name))
        }
        try write("tokenizer.json", trained.text(.pretty) + "\n")
        try write("chat_template.jinja", chatTemplate)
        let config: JSON = [
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": .null, "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>", "model_max_length": .integer(context), "clean_up_tokenization_spaces": false,
        ]
        try write("tokenizer_config.json", config.text(.pretty) + "\n")
        let tokenizer = try Tokenizer(folder: folder)
        let ends = ["<|endoftext|>", "<|im_end|>"].compactMap { tokenizer.id(of: $0).map { JSON.integer(Int($0)) } }
        try write("generation_config.json", JSON.object(["eos_token_id": .array(ends)]).text(.pretty) + "\n")
        return tokenizer
    }
}

/// Turns marked by special tokens, each with its role on the first line (ChatML); the assistant's part, with the token that
/// ends it, is marked for the loss.
private let chatTemplate = """
    {%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
    {%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
    {%- else -%}
    {{- message['content'] + '<|im_end|>' -}}
    {%- endif -%}
    {{- '\\n' -}}
    {%- endfor -%}
    {%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}

    """
