internal import MartletCore
package import MartletData

extension Recipe {
    /// What the chat template is to write as the time now: what it wrote when the run began that this one continues, so
    /// that a run may be resumed on another day.
    package var startDate: TemplateDate {
        let checkpoints =
            switch resume {
            case "never": [String]()
            case "auto": CheckpointStore(folder: outputDir).newestFirst
            default: [resume]
            }
        return checkpoints.lazy.compactMap { (try? CheckpointFiles.state(at: $0))?.templateDate }.first ?? .now()
    }
}

/// Decides from where a run goes on.
struct Resume {
    let recipe: Recipe
    let store: CheckpointStore
    let files: CheckpointFiles
    /// The state of a run that starts anew.
    let fresh: TrainerState

    struct Start {
        var state: TrainerState
        var checkpoint: String?
        /// Checkpoints that could not be used, and why.
        var notes: [String] = []
    }

    /// Loads the tensors of the checkpoint, if there is one to continue from.
    func start() throws(MartletError) -> Start {
        try store.removeLeftovers()
        switch recipe.resume {
        case "never":
            guard try store.steps().isEmpty else {
                throw recipe.refusal(
                    "output_dir", "the output folder holds the checkpoints of another run",
                    because: "resume is 'never', and a later resume could not tell the two runs apart",
                    fix: "choose another 'output_dir', or resume with 'resume: auto'")
            }
            return Start(state: fresh)
        case "auto": return try newest()
        default:
            guard FileSystem.kind(of: recipe.resume) == .folder else {
                throw recipe.refusal(
                    "resume", "there is no checkpoint '\(recipe.resume)'", because: "it is not a folder",
                    fix: "name a checkpoint-N folder, or write 'resume: auto'")
            }
            return Start(state: try load(recipe.resume), checkpoint: recipe.resume)
        }
    }

    /// The newest checkpoint that can be read; a damaged one is passed over, a foreign one is an error.
    private func newest() throws(MartletError) -> Start {
        var notes: [String] = []
        for step in try store.steps().reversed() {
            let path = store.path(ofStep: step)
            let state: TrainerState
            do throws(MartletError) { state = try CheckpointFiles.state(at: path) } catch {
                notes.append("passed over \(path): \(error.problem)")
                continue
            }
            try checkBelongs(state, path)
            do throws(MartletError) { try files.read(path) } catch {
                notes.append("passed over \(path): \(error.problem)" + (error.reason.map { " (\($0))" } ?? ""))
                continue
            }
            return Start(state: state, checkpoint: path, notes: notes)
        }
        return Start(state: fresh, notes: notes)
    }

    private func load(_ path: String) throws(MartletError) -> TrainerState {
        let state = try CheckpointFiles.state(at: path)
        try checkBelongs(state, path)
        try files.read(path)
        return state
    }

    private func checkBelongs(_ state: TrainerState, _ path: String) throws(MartletError) {
        let differences = recipe.differencesOnResume(from: state.recipe)
        guard differences.isEmpty else {
            throw MartletError(
                "the recipe has changed since the checkpoint was written", in: path,
                because: differences.map { "\($0.key) was \($0.before), is \($0.now)" }.joined(separator: "; "),
                fix: "change these keys back to resume, or choose another 'output_dir' to start anew")
        }
        guard state.dataFingerprint == fresh.dataFingerprint, state.totalSteps == fresh.totalSteps else {
            throw MartletError(
                "the dataset has changed since the checkpoint was written", in: path,
                because: "the tokens of its steps are no longer the same",
                fix: "bring the dataset, the tokenizer and the chat template back, or choose another 'output_dir'")
        }
    }
}
