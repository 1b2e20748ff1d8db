package import MartletCore

/// A dataset ready for training: every example tokenised once, at start, and a report of what became of the rows.
package final class TokenizedDataset: Sendable {
    package let settings: DatasetSettings
    package let report: DataReport
    /// Tells this dataset from any other: made from every token, mask and border, and `maxLength`.
    package let fingerprint: String
    let encoder: any TextEncoder
    private let store: TokenStore
    private let files: [DatasetFile]
    private let origins: [ExampleOrigin]

    /// Reads and tokenises files and folders; conversations need a `renderer`. `progress` is told the share of rows done.
    package convenience init(
        paths: [String], settings: DatasetSettings, encoder: any TextEncoder, renderer: (any ConversationRenderer)?,
        progress: ((Double) -> Void)? = nil
    ) throws(MartletError) {
        var loader = try DatasetLoader(paths: paths, settings: settings, encoder: encoder, renderer: renderer)
        try loader.run(progress)
        try self.init(loader)
    }

    private init(_ loader: DatasetLoader) throws(MartletError) {
        settings = loader.settings
        encoder = loader.tokenizer.encoder
        store = try loader.writer.finish()
        files = loader.files
        origins = loader.origins
        var fingerprint = loader.fingerprint
        fingerprint.add(loader.settings.maxLength)
        self.fingerprint = fingerprint.text
        report = loader.report
    }

    package var count: Int { store.count }

    /// Tokens of an example.
    package func length(_ index: Int) -> Int { store.length(index) }

    package func example(_ index: Int) throws(MartletError) -> TokenizedExample { try store.example(index) }

    /// "file, line N" of the row an example came from.
    package func location(of index: Int) -> String {
        files[Int(origins[index].file)].location(of: Int(origins[index].row))
    }

    /// Whether the tokens are in memory, not in a temporary file.
    package var isInMemory: Bool { store.isInMemory }
}

/// Which row of which file an example came from.
struct ExampleOrigin: Sendable {
    var file: Int32
    var row: Int32
}
