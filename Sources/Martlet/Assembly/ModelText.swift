internal import MartletCore
internal import MartletData

extension Assembly.ModelText {
    /// The tokenizer and the chat template of a model's folder.
    init(folder: String) throws(MartletError) {
        throw MartletError("tokenizers cannot be read yet", in: folder, fix: "wait for the tokenizer")
    }
}
