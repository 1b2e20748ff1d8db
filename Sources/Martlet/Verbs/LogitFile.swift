internal import MartletCore
internal import MartletModel

/// Logits as a file, for comparing with other tools.
public enum LogitFile {
    /// Runs each list of token ids of a JSON file alone and writes the logits; returns what was done.
    public static func write(
        model: String, adapter folder: String? = nil, tokensFile: String, to path: String, compute: Compute = Compute()
    ) throws(MartletError) -> String {
        let checkpoint = try Checkpoint(folder: model), V = checkpoint.configuration.vocabularyCount
        let adapter = try folder.map { (path) throws(MartletError) in
            try Adapter(folder: path, for: checkpoint.configuration)
        }
        let json = try FileSystem.readJSON(tokensFile)
        let isSingle = json.array?.first?.array == nil
        let sequences = (isSingle ? [json] : json.array ?? []).map {
            $0.array?.map { $0.integer.flatMap { Int32(exactly: $0) } } ?? []
        }
        guard let longest = sequences.map(\.count).max(), !sequences.contains(where: \.isEmpty) else {
            throw wrong(tokensFile)
        }
        let machine = try Model.forInference(
            checkpoint, adapter: adapter, .logits(stepTokens: longest), compute)
        var tensors: [String: [Float]] = [:], descriptions: [TensorDescription] = []
        for (i, sequence) in sequences.enumerated() {
            let ids = sequence.compactMap { $0 }
            guard ids.count == sequence.count else { throw wrong(tokensFile) }
            var step = PackedStep()
            step.append(ids, isTrained: ids.map { _ in true })
            let name = isSingle ? "logits" : "logits.\(i)"
            tensors[name] = try machine.logits(step)
            descriptions.append(TensorDescription(name, .float32, [ids.count, V]))
        }
        try SafeTensorsWriter.write(descriptions, to: path) { (tensor, sink) throws(MartletError) in
            try sink.write(tensors[tensor.name] ?? [])
        }
        return "\(path): logits of \(sequences.count) sequences"
    }

    private static func wrong(_ path: String) -> MartletError {
        MartletError(
            "the file holds no token ids", in: path,
            because: "it is neither a list of integers nor a list of such lists",
            fix: "write [1, 2, 3] or [[1, 2, 3], [4, 5]]")
    }
}
