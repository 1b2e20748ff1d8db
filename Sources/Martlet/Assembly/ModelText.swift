internal import MartletCore
internal import MartletData

extension Assembly.ModelText {
    /// The tokenizer and the chat template of a model's folder.
    init(folder: String) throws(MartletError) {
        let text = try FolderText(folder: folder)
        self.init(encoder: text.tokenizer, renderer: text.renderer)
    }
}
