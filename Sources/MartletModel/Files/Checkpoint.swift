package import MartletCore

/// A model on disk in the hub's layout: config.json and safetensors files, mapped and read a weight at a time.
package final class Checkpoint: Sendable {
    package let folder: String
    package let configuration: ModelConfiguration
    /// config.json as it stands there.
    package let configJSON: JSON
    package let family: Family
    package let tensors: SafeTensorsFolder

    package init(folder: String) throws(MartletError) {
        self.folder = folder
        let path = FileSystem.join(folder, "config.json")
        try requireModelFolder(folder, config: path)
        configJSON = try FileSystem.readJSON(path)
        do throws(MartletError) {
            family = try Family.of(configJSON)
            configuration = try ModelConfiguration(json: configJSON)
        } catch {
            throw error.at(path)
        }
        tensors = try SafeTensorsFolder(folder)
    }

    /// Every weight of the model, in the order of the flow.
    package var weights: [Weight] { configuration.weights }

    /// The dtype of the embedding, which is that of the projections in every published checkpoint.
    package var storedDType: DType {
        let name = family.layouts(.embedding, configuration).first?.first?.name
        return name.flatMap { tensors[$0]?.dtype } ?? .bfloat16
    }

    /// Every expected tensor is there with the right shape and a readable dtype, and no tensor is left over that the model
    /// would silently ignore. Reads headers only.
    package func validate() throws(MartletError) {
        for weight in weights {
            for (_, tensor) in try parts(of: weight) { _ = try tensor.floatDType() }
        }
        let unexpected = unexpectedTensors
        guard unexpected.isEmpty else {
            throw MartletError(
                "the checkpoint holds weights that this model does not use", in: folder,
                because: "unexpected: \(unexpected.prefix(5).joined(separator: ", "))"
                    + (unexpected.count > 5 ? " and \(unexpected.count - 5) more" : ""),
                fix: "check that config.json belongs to these files; this family stores none of these")
        }
    }

    /// Tensors that no weight reads, sorted; without those that every loader ignores: extra layers for predicting several
    /// tokens (stored as layer L and above), the copy of a tied head, and rotary tables.
    package var unexpectedTensors: [String] {
        var expected: Set<String> = []
        for weight in weights {
            if let parts = try? parts(of: weight) { expected.formUnion(parts.map(\.part.name)) }
        }
        return tensors.tensors.map(\.name).filter { !expected.contains($0) && !isIgnorable($0) }.sorted()
    }

    private func isIgnorable(_ name: String) -> Bool {
        if name.hasSuffix("rotary_emb.inv_freq") { return true }
        if configuration.tiesEmbeddings, family.layouts(.head, configuration).first?.first?.name == name { return true }
        let words = name.split(separator: ".", maxSplits: 3)
        guard words.count > 2, words[0] == "model", words[1] == "layers", let layer = Int(words[2]) else {
            return false
        }
        return layer >= configuration.layerCount
    }

    /// The stored tensors of a weight in the layout that this checkpoint has.
    package func parts(of weight: Weight) throws(MartletError) -> [(part: WeightPart, tensor: HostTensor)] {
        let layouts = family.layouts(weight, configuration)
        let present = layouts.filter { $0.first.map { tensors[$0.name] != nil } ?? false }
        for layout in present.isEmpty ? layouts : present {
            let found = layout.compactMap { part in
                tensors[part.name].flatMap { $0.shape == part.shape ? (part: part, tensor: $0) : nil }
            }
            if found.count == layout.count { return found }
        }
        throw mismatch((present.first ?? layouts.first) ?? [])
    }

    private func mismatch(_ layout: [WeightPart]) -> MartletError {
        for part in layout {
            guard let tensor = tensors[part.name] else { return missing(part.name) }
            guard tensor.shape != part.shape else { continue }
            return MartletError(
                "a weight has the wrong shape", in: tensor.location,
                because: "it is \(tensor.shape), and config.json asks for \(part.shape)",
                fix: "use the config.json that belongs to these weights; download both again")
        }
        return missing(layout.first?.name ?? "")
    }

    private func missing(_ name: String) -> MartletError {
        let isHead = family.layouts(.head, configuration).first?.first?.name == name
        let guess = closestMatch(to: name, among: tensors.tensors.map(\.name))
        return MartletError(
            "the checkpoint lacks a weight", in: "\(folder), tensor '\(name)'",
            because: "none of its \(tensors.tensors.count) tensors has this name"
                + (guess.map { "; the closest is '\($0)'" } ?? ""),
            fix: isHead
                ? "if the model shares embedding and head, set \"tie_word_embeddings\": true in config.json"
                : "download the model again completely, config.json included")
    }
}

private func requireModelFolder(_ folder: String, config: String) throws(MartletError) {
    switch FileSystem.kind(of: folder) {
    case .folder: break
    case nil:
        throw MartletError(
            "there is no model folder", in: folder, because: "nothing stands at that path",
            fix: "give the folder of a downloaded model (`hf download NAME --local-dir FOLDER` makes one)")
    default:
        throw MartletError(
            "the model is not a folder", in: folder, because: "it is a file",
            fix: "give the folder that holds config.json and the safetensors files")
    }
    guard !FileSystem.exists(config) else { return }
    let isAdapter = FileSystem.exists(FileSystem.join(folder, "adapter_config.json"))
    throw MartletError(
        "the folder holds no model", in: folder,
        because: isAdapter ? "it is an adapter: adapter_config.json, and no config.json" : "there is no config.json",
        fix: isAdapter ? "give the base model's folder as the model" : "give the folder that holds config.json")
}
