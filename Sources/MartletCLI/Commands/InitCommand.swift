import ArgumentParser
import Martlet

struct InitCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "init", abstract: "Make a new, untrained model: random weights, tokenizer, chat template.",
        discussion: """
            A Qwen3, or with --experts a Qwen3-MoE, in the hub's layout. The tokenizer is learned from --text; without it \
            every byte is a token. Train it with 'method: full'.

              martlet init base --layers 4 --hidden 256 --experts 8 --experts-per-token 2 --text book.txt
            """)

    @Argument(help: "Folder to write.") var out: String
    @Option(help: "Decoder layers.") var layers = 4
    @Option(help: "Width.") var hidden = 256
    @Option(help: "Query heads.") var heads = 4
    @Option(help: "Key/value heads.") var kvHeads = 2
    @Option(help: "Size of a head.") var headDim = 64
    @Option(help: "Experts of each layer; 0: a dense model.") var experts = 0
    @Option(help: "Experts that a token is sent to.") var expertsPerToken = 2
    @Option(help: "Inner size of an expert.") var expertInner = 256
    @Option(help: "Inner size of a dense model's MLP.") var denseInner = 768
    @Option(help: "The most tokens of the vocabulary.") var vocab = 4096
    @Option(help: "Longest context in tokens.") var context = 4096
    @Flag(help: "Use the embedding as the head.") var tie = false
    @Option(help: "Text file to learn the tokenizer from.") var text: String?
    @Option(help: "Seed of the weights.") var seed = 0
    @Option(help: "bf16, f16 or f32.") var dtype = DTypeName.bf16
    @Option(help: "Standard deviation of the weights.") var std = 0.02

    func run() throws {
        var settings = Initialization.Settings()
        (settings.layers, settings.hidden) = (layers, hidden)
        (settings.heads, settings.keyValueHeads, settings.headSize) = (heads, kvHeads, headDim)
        (settings.experts, settings.expertsPerToken) = (experts, expertsPerToken)
        (settings.expertInner, settings.denseInner) = (expertInner, denseInner)
        (settings.vocabulary, settings.context, settings.tiesEmbeddings) = (vocab, context, tie)
        (settings.text, settings.seed) = (text, seed)
        (settings.dtype, settings.standardDeviation) = (dtype.dtype, std)
        Terminal.say(try Initialization.run(into: out, settings: settings))
    }
}
