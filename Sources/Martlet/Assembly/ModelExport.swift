internal import MartletCore
internal import MartletModel

/// Writes what was learned in the forms that the recipe wants, and reads every one of them again.
struct ModelExport {
    let recipe: Recipe
    let checkpoint: Checkpoint
    let model: Model

    /// Returns the folders written.
    func write(to folder: String) throws(MartletError) -> [String] {
        let adapter = model.settings.method == .lora ? model.adapter(baseModel: recipe.model) : nil
        var written: [String] = []
        for layout in recipe.effectiveExport {
            let path = FileSystem.join(folder, name(of: layout))
            switch layout {
            case .fused: try write(adapter, .fused, to: path)
            case .perExpert: try write(adapter, .perExpert, to: path)
            case .merged: try writeMerged(adapter, to: path)
            }
            written.append(path)
        }
        return written
    }

    private func name(of layout: Recipe.ExportLayout) -> String {
        switch layout {
        case .fused: "adapter"
        case .perExpert: "adapter_per_expert"
        case .merged: "merged"
        }
    }

    private func write(_ adapter: Adapter?, _ layout: Adapter.Layout, to path: String) throws(MartletError) {
        guard let adapter else { return }
        try adapter.write(to: path, for: model.configuration, layout: layout)
        let again = try Adapter(folder: path, for: model.configuration)
        guard again.matrices == adapter.matrices, again.settings.scale == adapter.settings.scale else {
            throw MartletError(
                "the adapter that was written is not the adapter that was trained", in: path,
                because: "reading it again gives other values",
                fix: "check the disk (`dmesg` shows its errors), then resume")
        }
    }

    private func writeMerged(_ adapter: Adapter?, to path: String) throws(MartletError) {
        let wholes = Dictionary(
            model.parameters.filter { $0.role == .whole }.map { ($0.weight, $0.master) },
            uniquingKeysWith: { first, _ in first })
        let merged = MergedCheckpoint(
            base: checkpoint, adapter: adapter,
            trained: { (weight) throws(MartletError) in wholes[weight].map(model.backend.floats) })
        try merged.write(to: path, replaces: true)
        _ = try merged.verify(path)
    }
}
