internal import MartletCore

/// The checkpoints of a run: `checkpoint-N` folders in its output folder.
struct CheckpointStore {
    let folder: String

    private static let prefix = "checkpoint-"

    func path(ofStep step: Int) -> String { FileSystem.join(folder, CheckpointStore.prefix + String(step)) }

    /// Steps with a checkpoint folder, ascending. Folders appear whole or not at all, so what has the name is complete.
    func steps() throws(MartletError) -> [Int] {
        guard FileSystem.kind(of: folder) == .folder else { return [] }
        return try FileSystem.list(folder).compactMap { name in
            guard name.hasPrefix(CheckpointStore.prefix), let step = Int(name.dropFirst(CheckpointStore.prefix.count)),
                step > 0,
                name == CheckpointStore.prefix + String(step)
            else { return nil }
            return FileSystem.kind(of: FileSystem.join(folder, name)) == .folder ? step : nil
        }.sorted()
    }

    /// Checkpoint folders, the newest first; none if they cannot be listed.
    var newestFirst: [String] { ((try? steps()) ?? []).reversed().map(path(ofStep:)) }

    /// Removes what a killed run left half-written.
    func removeLeftovers() throws(MartletError) {
        guard FileSystem.kind(of: folder) == .folder else { return }
        for name in try FileSystem.list(folder)
        where name.hasPrefix("." + CheckpointStore.prefix) && name.hasSuffix(".partial") {
            try FileSystem.remove(FileSystem.join(folder, name))
        }
    }

    /// Deletes the oldest checkpoints beyond `limit`, never the newest and never the best.
    func prune(limit: Int?, best: Int?) throws(MartletError) {
        guard let limit else { return }
        let steps = try steps()
        var surplus = steps.count - limit
        for step in steps.dropLast() where surplus > 0 && step != best {
            try FileSystem.remove(path(ofStep: step))
            surplus -= 1
        }
    }
}
