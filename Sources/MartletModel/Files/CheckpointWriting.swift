internal import MartletCore

/// Where the values of a checkpoint being written come from: rows of a weight viewed as [all rows, last extent].
typealias RowSource = (_ weight: Weight, _ rows: Range<Int>) throws(MartletError) -> [Float]

extension Checkpoint {
    /// A piece of a stored tensor that is made, rounded and written at once.
    private static let pieceCount = 1 << 22

    /// Writes weights and config.json into an open folder, in the hub's names and layout, a piece at a time.
    static func write(
        _ configuration: ModelConfiguration, _ configJSON: JSON, to folder: AtomicFolder, maximumShardSize: Int,
        dtype: (Weight) throws(MartletError) -> DType, _ source: RowSource
    ) throws(MartletError) {
        let family = try Family.of(configJSON)
        var places: [String: (weight: Weight, part: WeightPart)] = [:]
        var tensors: [TensorDescription] = []
        for weight in configuration.weights {
            let dtype = try dtype(weight)
            for part in family.layouts(weight, configuration).first ?? [] {
                places[part.name] = (weight, part)
                tensors.append(TensorDescription(part.name, dtype, part.shape))
            }
        }
        try SafeTensorsWriter.writeFolder(tensors, to: folder.temporaryPath, maximumShardSize: maximumShardSize) {
            (tensor, sink) throws(MartletError) in
            guard let (weight, part) = places[tensor.name] else { return }
            for rows in pieces(of: part) {
                let values = try source(weight, rows)
                let isSound = values.withUnsafeBytes { !containsNonFinite($0, as: .float32) }
                guard isSound else { throw notWritable(tensor.name) }
                try sink.write(values)
            }
        }
        try AtomicFile.write(configJSON.text(.pretty) + "\n", to: folder.file("config.json"))
    }

    /// The rows of a part in pieces of bounded size.
    static func pieces(of part: WeightPart) -> [Range<Int>] {
        let step = max(1, pieceCount / max(part.columnCount, 1))
        return stride(from: part.rows.lowerBound, to: part.rows.upperBound, by: step).map {
            $0..<min($0 + step, part.rows.upperBound)
        }
    }

    /// Copies what belongs to a model besides its weights: tokenizer, chat template, generation settings.
    static func copyCompanions(from source: String, to folder: AtomicFolder) throws(MartletError) {
        let companions = [
            "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
            "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
        ]
        for name in companions {
            let path = FileSystem.join(source, name)
            if FileSystem.kind(of: path) == .file { try AtomicFile.copy(path, to: folder.file(name)) }
        }
    }
}

private func notWritable(_ name: String) -> MartletError {
    MartletError(
        "a weight to be written is not a number", in: "tensor '\(name)'", because: "it holds NaN or infinity",
        fix: "the training went wrong before this point; export an earlier checkpoint")
}
