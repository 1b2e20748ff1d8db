internal import MartletCore

/// Whether tiles are tried; what `MARTLET_TUNE` says.
enum Tuning: String, CaseIterable { case on, off }

/// How the tiles in force were found.
package struct TileReport: CustomStringConvertible {
    /// Kernels that have a choice, and those of them that took another tile than the usual one.
    package var kernels: Int
    package var unusual: Int
    /// What trying them took; nil where an earlier run did.
    package var seconds: Double?

    package var description: String {
        "tiles of \(kernels) kernels tuned " + (seconds.map { "in \(fixed($0, 1)) s" } ?? "before")
            + ", \(unusual) not the usual ones (\(KernelCache.tiles.folder))"
    }
}

extension CUDABackend {
    private var tileCache: TileCache {
        TileCache(
            machine:
                "\(device.name), \(device.architecture.name), driver \(device.driverVersion), \(device.compiler.version)"
        )
    }

    /// What was tuned on this GPU: a line a shape, and one for each tile that is not the usual one.
    package var tuned: [String] {
        guard tunesTiles else { return ["the usual ones: MARTLET_TUNE is off"] }
        let entries = tileCache.entries, folder = tileCache.files.folder
        guard !entries.isEmpty else { return ["the usual ones, until a run of some size tunes them (\(folder))"] }
        return ["tuned for \(entries.count) shapes on this GPU (\(folder))"]
            + entries.flatMap { entry in
                let unusual = entry.answers.filter { !$0.isUsual }
                return ["\(entry.shape): \(unusual.count) of \(entry.answers.count) not the usual ones"]
                    + unusual.map { "  \($0.text)" }
            }
    }

    /// What a person should know of it: that some seconds went into it.
    package var tileRemark: String? { tileReport.flatMap { $0.seconds == nil ? nil : $0.description } }

    /// The most candidates that a kernel has here.
    package var tileCount: Int {
        let flash = [64, 128, 192, 256].map { FlashShape.candidates(headSize: $0, device.architecture).count }
        let experts = [ProjectTile.candidates.count, GradientTile.candidates.count]
        return (flash + experts + [PortableTile.candidates(device.architecture).count]).max() ?? 1
    }

    /// Takes the tiles that were found for these shapes, or finds them: some seconds, once. Nothing depends on it but time.
    func tuneTiles(for shapes: ScratchShapes) {
        (tiles.chosen, tileReport) = ([:], nil)
        guard tunesTiles, tiles.forced == nil, let ground = TuningGround(self, shapes) else { return }
        let cache = tileCache
        var entry = cache.read(ground.name), seconds: Double?
        if entry == nil {
            let clock = ContinuousClock(), start = clock.now
            entry = ground.answers().map { TileEntry(machine: cache.machine, shape: ground.name, answers: $0) }
            seconds = (clock.now - start) / .seconds(1)
            if let entry { cache.write(entry) }
        }
        guard let answers = entry?.answers else { return }
        for answer in answers { tiles.chosen[answer.kernel] = answer.tile }
        tileReport = TileReport(kernels: answers.count, unusual: answers.filter { !$0.isUsual }.count, seconds: seconds)
    }
}
