internal import MartletCore
internal import MartletData

extension Assembly.ModelText {
    /// The tokenizer and the chat template of a model's folder; `now` is what a template that writes the date writes.
    init(folder: String, now: TemplateDate) throws(MartletError) {
        let text = try FolderText(folder: folder, now: now)
        self.init(encoder: text.tokenizer, renderer: text.renderer, endTokens: text.endTokens)
    }

    /// The time that the chat template writes into the conversations; nil if it writes none.
    var writtenDate: TemplateDate? { (renderer as? TemplateRenderer)?.writtenDate }
}
