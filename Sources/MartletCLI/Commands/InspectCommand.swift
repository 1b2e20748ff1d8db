import ArgumentParser
import Martlet

struct InspectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect", abstract: "See what a model, an adapter or a dataset holds.",
        discussion: """
            A model: its shape, parameters by group, missing, unexpected and broken tensors. An adapter: its settings, \
            layout and size, and whether it fits its base model. A dataset: the report that training prints, and rows \
            as the model sees them, the trained tokens marked.

              martlet inspect /models/Qwen3-0.6B
              martlet inspect runs/first/adapter --model /models/Qwen3-0.6B
              martlet inspect data/train.jsonl --model /models/Qwen3-0.6B --rows 2
              martlet inspect book.txt --model /models/Qwen3-0.6B --tokenize --json

            Exit code 1 if something is wrong with it.
            """)

    @Argument(help: "Folder of a model or adapter; file or folder of a dataset.") var path: String
    @Option(help: "Folder of the model that a dataset or an adapter belongs to.") var model: String?
    @Option(help: "Rows of a dataset to show.") var rows = 3
    @Option(help: "The most tokens of a row.") var maxLength = 2048
    @Flag(help: "Only encode PATH, a text file, and tell how many tokens it is and how long that took.") var tokenize =
        false
    @Option(help: "With --tokenize: write the token ids there, as a JSON list.") var idsOut: String?
    @Flag(help: "Print one JSON object.") var json = false

    func validate() throws {
        if tokenize, model == nil { throw ValidationError("--tokenize needs --model FOLDER, whose tokenizer is used") }
        if idsOut != nil, !tokenize { throw ValidationError("--ids-out has no effect without --tokenize") }
        if rows < 0 { throw ValidationError("--rows must be 0 or more") }
    }

    func run() throws {
        if tokenize, let model { return try encode(model) }
        var settings = Inspection.Settings()
        settings.model = model
        settings.rowCount = rows
        settings.maxLength = maxLength
        let inspection = try Inspection.of(path, settings: settings)
        if json {
            Terminal.say(inspection.json)
        } else {
            Terminal.say(inspection.description)
            inspection.rows.forEach(show)
        }
        if !inspection.problems.isEmpty { throw ExitCode(1) }
    }

    /// Trained text green on a terminal, and in double brackets elsewhere.
    private func show(_ row: Inspection.Row) {
        Terminal.say("\n\(row.location): \(row.tokenCount) tokens, \(row.trainedCount) trained")
        for piece in row.pieces {
            guard piece.isTrained else { Terminal.show(piece.text); continue }
            Terminal.show(Terminal.hasColor ? Terminal.colored(piece.text, 32) : "[[\(piece.text)]]")
        }
        Terminal.say("")
    }

    private func encode(_ model: String) throws {
        let result = try Tokenization(file: path, model: model)
        if let idsOut { try result.write(to: idsOut) }
        Terminal.say(
            json ? result.json : "\(result.ids.count) tokens of \(result.byteCount) bytes in \(result.seconds) s")
    }
}

struct LogitsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "logits", abstract: "Write a model's logits for given tokens, to compare with other tools.",
        discussion: """
            Reads a JSON list of token ids, or a list of such lists (each is run alone), and writes float32 tensors \
            'logits' or 'logits.0', 'logits.1', ... of [tokens, vocabulary]:

              martlet logits MODEL --adapter ADAPTER --tokens-file ids.json --out logits.safetensors
            """)

    @Argument(help: "Folder of the model.") var model: String
    @Option(help: "Folder of an adapter to apply.") var adapter: String?
    @Option(help: "JSON file of token ids.") var tokensFile: String
    @Option(help: "safetensors file to write.") var out: String
    @OptionGroup var compute: ComputeOptions

    func run() throws {
        Terminal.say(
            try LogitFile.write(model: model, adapter: adapter, tokensFile: tokensFile, to: out, compute: compute.value)
        )
    }
}
