import ArgumentParser
import Martlet

struct GenerateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "generate", abstract: "Let a model write.",
        discussion: """
            A question through the model's chat template, a text to continue, or a conversation:

              martlet generate MODEL --chat "What is a martlet?"
              martlet generate MODEL --prompt "It is a truth universally"
              martlet generate MODEL --adapter runs/first/adapter

            Without --chat or --prompt it talks with you on a terminal (an empty line or Ctrl-D ends it), and otherwise \
            answers what comes in on standard input. The same seed gives the same text.
            """)

    @Argument(help: "Folder of the model.") var model: String
    @Option(help: "Folder of an adapter to apply.") var adapter: String?
    @Option(help: "Text to continue as it stands, without the chat template.") var prompt: String?
    @Option(help: "A user's message, put through the chat template.") var chat: String?
    @Option(help: "A system message before the conversation.") var system: String?
    @Flag(help: "Leave the chat template out: what is read is text to continue.") var raw = false
    @Option(help: "The most tokens to write.") var maxTokens = 256
    @Option(help: "0: always the likeliest token; higher: more surprising.") var temperature = 0.7
    @Option(help: "Draw from the likeliest tokens that reach this probability together.") var topP = 0.95
    @Option(help: "Draw from this many of the likeliest tokens; 0: all.") var topK = 0
    @Option(help: "Seed of the draws.") var seed = 0
    @Option(help: "Tokens of prompt and answer together that fit (default: 2048, or what the model can take).")
    var context: Int?
    @OptionGroup var compute: ComputeOptions
    @Flag(help: "Tell the speed on standard error.") var verbose = false
    @Flag(help: "Print one JSON object instead of the text as it comes.") var json = false

    func validate() throws {
        if prompt != nil, chat != nil { throw ValidationError("--prompt and --chat exclude each other") }
        if maxTokens < 1 { throw ValidationError("--max-tokens must be at least 1") }
        if raw, system != nil {
            throw ValidationError("--system has no effect with --raw: there is no chat template then")
        }
        if prompt != nil, system != nil { throw ValidationError("--system has no effect with --prompt; use --chat") }
        if raw, chat != nil { throw ValidationError("--raw and --chat exclude each other; use --prompt") }
    }

    func run() throws {
        let generator = try TextGenerator(model: model, adapter: adapter, context: context, compute: compute.value)
        Interrupts.watch()
        let usesTemplate = prompt == nil && !raw && (chat != nil || system != nil || generator.hasChatTemplate)
        if let text = prompt ?? chat { return try answer(text, usesTemplate, generator) }
        guard Terminal.inputIsInteractive else { return try answer(standardInput(), usesTemplate, generator) }
        try converse(generator, usesTemplate)
    }

    private var messagesBefore: [TextGenerator.Message] {
        system.map { [TextGenerator.Message(role: "system", content: $0)] } ?? []
    }

    private func answer(_ text: String, _ usesTemplate: Bool, _ generator: TextGenerator) throws {
        let messages = messagesBefore + [TextGenerator.Message(role: "user", content: text)]
        let result = try write(usesTemplate ? generator.prompt(for: messages) : text, usesTemplate, generator)
        if json { Terminal.say(result.json) }
    }

    private func converse(_ generator: TextGenerator, _ usesTemplate: Bool) throws {
        var messages = messagesBefore
        while !Interrupts.stop.isOn {
            Terminal.show("> ")
            guard let line = readLine(), !line.isEmpty else { return }
            messages.append(TextGenerator.Message(role: "user", content: line))
            let result = try write(usesTemplate ? generator.prompt(for: messages) : line, usesTemplate, generator)
            messages.append(TextGenerator.Message(role: "assistant", content: result.text))
            if json { Terminal.say(result.json) }
        }
        leave(130)
    }

    private func write(_ prompt: String, _ isRendered: Bool, _ generator: TextGenerator) throws -> TextGenerator.Result
    {
        let sampling = SamplingSettings(temperature: temperature, topK: topK, topP: topP, seed: seed)
        let result = try generator.generate(
            prompt, isRendered: isRendered, maxTokens: maxTokens, sampling: sampling
        ) { piece in
            if !json { Terminal.show(piece) }
            return !Interrupts.stop.isOn
        }
        if !json { Terminal.show("\n") }
        if verbose { Terminal.complain(result.summary) }
        if result.end == .stopped { leave(130) }
        return result
    }

    private func standardInput() -> String {
        var text = ""
        while let line = readLine(strippingNewline: false) { text += line }
        while text.last?.isNewline == true { text.removeLast() }
        return text
    }
}
