internal import MartletCore

/// How the tiles in force were found.
package struct TileReport: CustomStringConvertible {
    /// Kernels that have a choice, and those of them that took another tile than the usual one; none where trying failed.
    package var kernels = 0
    package var unusual = 0
    /// What trying them took; nil where an earlier run did.
    package var seconds: Double?

    package var description: String {
        guard kernels > 0 else { return "tiles are the usual ones: others could not be tried" }
        return "tiles of \(kernels) kernels tuned " + (seconds.map { "in \(fixed($0, 1)) s" } ?? "before")
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
        guard !entries.isEmpty else { return ["the usual ones until a run of some size tunes them (\(folder))"] }
        return ["those that were tuned on this GPU (\(folder))"]
            + entries.flatMap { entry in
                let unusual = entry.answers.filter { !$0.isUsual }
                return ["\(entry.shape): \(unusual.count) of \(entry.answers.count) are not the usual ones"]
                    + unusual.map { "  \($0.text)" }
            }
    }

    /// What a person should know of it: that some seconds went into it.
    package var tileRemark: String? { tileReport?.seconds == nil ? nil : tileReport?.description }

    /// The most candidates that a kernel has here.
    package var tileCount: Int {
        let flash = [64, 128, 192, 256].map { FlashShape.candidates(headSize: $0, device.architecture).count }
        let experts = [ProjectTile.candidates.count, GradientTile.candidates(rank: 16, device.architecture).count]
        return (flash + experts + [PortableTile.candidates(device.architecture).count]).max() ?? 1
    }

    /// Takes the tiles that were found for these shapes, or finds them: some seconds, once. Nothing depends on it but time.
    func tuneTiles(for shapes: ScratchShapes) {
        (tiles.chosen, tileReport) = ([:], nil)
        guard tunesTiles, tiles.forced == nil, device.failure == nil, let ground = TuningGround(self, shapes) else {
            return
        }
        let cache = tileCache
        var report = TileReport(), answers = cache.read(ground.name)?.answers
        if answers == nil {
            let clock = ContinuousClock(), start = clock.now
            answers = ground.answers()
            report.seconds = (clock.now - start) / .seconds(1)
            if let answers { cache.write(TileEntry(machine: cache.machine, shape: ground.name, answers: answers)) }
        }
        for answer in answers ?? [] { tiles.chosen[answer.kernel] = answer.tile }
        report.kernels = tiles.chosen.count
        report.unusual = answers?.filter { !$0.isUsual }.count ?? 0
        tileReport = report
    }
}
