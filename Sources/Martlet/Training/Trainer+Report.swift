internal import MartletCore

extension Trainer {
    func overview(resumedFrom checkpoint: String?) -> TrainingOverview {
        TrainingOverview(
            memory: parts.memory.overviewRows, trainable: trainable, data: parts.data, totalSteps: totalSteps,
            stepsPerEpoch: parts.training.stepsPerEpoch, doneSteps: state.step, resumedFrom: checkpoint)
    }

    /// Writes report.html and returns its path.
    func writeReport(_ end: TrainingEnd, _ exports: [String]) throws(MartletError) -> String {
        let metrics = try MetricsLog.rows(in: recipe.outputDir)
        let content = ReportContent(
            title: "Fine-tuning of \(FileSystem.name(of: recipe.model))", subtitle: subtitle(end),
            tiles: tiles(metrics),
            metrics: metrics, load: loadWindow, memory: parts.memory.overviewRows, trainable: trainable,
            data: parts.data,
            facts: parts.facts + exports.map { .init("written", $0) }, samples: try samples(end), notes: notes,
            recipe: recipe.yaml)
        let path = FileSystem.join(recipe.outputDir, "report.html")
        try AtomicFile.write(ReportPage(content: content).html, to: path)
        return path
    }

    /// Before and after; nothing of a run that somebody wants to end now.
    private func samples(_ end: TrainingEnd) throws(MartletError) -> [ReportSample] {
        guard end != .stopped, !samplesBefore.isEmpty else { return [] }
        return try parts.samples().compactMap { after in
            samplesBefore.first { $0.prompt == after.prompt }.map {
                ReportSample(prompt: after.prompt, before: $0.text, after: after.text)
            }
        }
    }

    private func subtitle(_ end: TrainingEnd) -> String {
        let datasets = recipe.dataset.map(FileSystem.name(of:)).joined(separator: ", ")
        let ended =
            switch end {
            case .completed: "completed"
            case .stoppedEarly: "stopped early, validation no longer got better"
            case .stopped: "stopped on request; it can be resumed"
            }
        return
            "\(recipe.method == .lora ? "LoRA, rank \(recipe.loraR)" : "all weights"), on \(datasets). The run \(ended)."
    }

    private func tiles(_ metrics: [JSON]) -> [TrainingOverview.Row] {
        let steps = metrics.filter { $0["loss"] != nil }
        var tiles = [TrainingOverview.Row("steps of \(totalSteps)", String(state.step))]
        if let loss = steps.last?["loss"]?.number { tiles.append(.init("last training loss", fixed(loss, 4))) }
        if let best = state.best { tiles.append(.init("best validation loss, step \(best.step)", fixed(best.loss, 4))) }
        tiles.append(.init("tokens", NumberText.count(state.tokenCount)))
        let speeds = steps.compactMap { $0["tokens_per_second"]?.number }.sorted()
        if !speeds.isEmpty {
            tiles.append(.init("tokens a second, median", NumberText.short(speeds[speeds.count / 2])))
        }
        if let peak = steps.compactMap({ $0["peak_memory_bytes"]?.integer }).max() {
            tiles.append(.init("peak memory", formatBytes(peak)))
        }
        tiles.append(
            .init(
                "parameters trained, \(NumberText.percent(trainable.share))", NumberText.count(trainable.parameterCount)
            ))
        return tiles
    }
}

extension MemoryPlan {
    /// The table as people read it, the sum last.
    var overviewRows: [TrainingOverview.Row] {
        rows.map { .init($0.name, formatBytes($0.byteCount), note: $0.note) } + [.init("total", formatBytes(byteCount))]
    }
}
