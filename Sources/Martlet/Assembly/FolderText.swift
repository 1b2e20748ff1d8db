internal import MartletCore
internal import MartletData
internal import MartletModel

/// The text side of a model folder: its tokenizer, its chat template if it has one, and the tokens that end an answer.
struct FolderText: Sendable {
    let tokenizer: Tokenizer
    /// nil where the model has no chat template.
    let template: ChatTemplate?
    /// The template as datasets use it.
    let renderer: TemplateRenderer?
    /// Generation stops at any of these.
    let endTokens: Set<Int32>

    /// `now` is what a template that writes the date writes.
    init(
        folder: String, _ configuration: ModelConfiguration, now: TemplateDate = .now()
    ) throws(MartletError) {
        tokenizer = try Tokenizer(folder: folder)
        let endTokens = try FolderText.endTokens(folder, configuration).union(tokenizer.eosID.map { [$0] } ?? [])
        let template = try FolderText.hasTemplate(folder) ? ChatTemplate(folder: folder) : nil
        let endOfTurn = endTokens.sorted().compactMap(tokenizer.token(of:))
        renderer = template.map { TemplateRenderer(template: $0, endOfTurn: endOfTurn, now: now) }
        self.template = template
        self.endTokens = endTokens
    }

    /// The text side of a folder whose configuration has not been read.
    init(folder: String, now: TemplateDate = .now()) throws(MartletError) {
        try self.init(folder: folder, try Checkpoint.configuration(of: folder), now: now)
    }

    private static func hasTemplate(_ folder: String) throws(MartletError) -> Bool {
        if FileSystem.exists(FileSystem.join(folder, "chat_template.jinja")) { return true }
        let path = FileSystem.join(folder, "tokenizer_config.json")
        guard FileSystem.exists(path), let value = try FileSystem.readJSON(path)["chat_template"] else { return false }
        return !value.isNull
    }

    /// generation_config.json's `eos_token_id`, or else config.json's.
    private static func endTokens(_ folder: String, _ c: ModelConfiguration) throws(MartletError) -> Set<Int32> {
        let path = FileSystem.join(folder, "generation_config.json")
        let generation = FileSystem.exists(path) ? try FileSystem.readJSON(path)["eos_token_id"] : nil
        let given = generation.map { $0.array?.compactMap(\.integer) ?? [$0.integer].compactMap { $0 } } ?? []
        return Set((given.isEmpty ? c.endTokens : given).compactMap { Int32(exactly: $0) })
    }
}
