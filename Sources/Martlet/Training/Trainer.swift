internal import MartletCore
internal import MartletModel

/// The training loop: train, validate, save, stop; every change of state is told.
final class Trainer {
    let recipe: Recipe
    let parts: TrainingParts
    let stop: StopSwitch
    private let tell: (TrainingEvent) -> TrainingAnswer

    let files: CheckpointFiles
    let store: CheckpointStore
    let trainable: TrainableSet
    let totalSteps: Int
    private let schedule: Schedule
    private let optimizer: Optimizer
    private var audit: GradientAudit

    var state: TrainerState
    private var metrics: MetricsLog?
    private var board: TensorBoardLog?
    private var savedState: TrainerState?
    private var lastLoss: Double?
    var loadWindow = LoadWindow()
    var notes: [String] = []
    /// What the untrained model wrote.
    var samplesBefore: [SampleText] = []

    var model: any TrainableModel { parts.model }

    init(
        _ recipe: Recipe, _ parts: TrainingParts, stop: StopSwitch, tell: @escaping (TrainingEvent) -> TrainingAnswer
    ) throws(MartletError) {
        self.recipe = recipe
        self.parts = parts
        self.stop = stop
        self.tell = tell
        let parameters = parts.model.parameters
        trainable = try TrainableSet(parameters, totalCount: parts.totalParameterCount)
        totalSteps = try Trainer.totalSteps(recipe, stepsPerEpoch: parts.training.stepsPerEpoch)
        schedule = Schedule(recipe, totalSteps: totalSteps)
        optimizer = Optimizer(recipe)
        audit = GradientAudit(parameters)
        files = CheckpointFiles(parameters: parameters, backend: parts.model.backend)
        store = CheckpointStore(folder: recipe.outputDir)
        let fingerprints = [parts.training.fingerprint, parts.validation?.fingerprint].compactMap { $0 }
        state = TrainerState(
            recipe: recipe, totalSteps: totalSteps, dataFingerprint: fingerprints.joined(separator: " "),
            templateDate: parts.templateDate)
    }

    /// Counted as transformers counts: a started step is a step.
    static func totalSteps(_ recipe: Recipe, stepsPerEpoch: Int) throws(MartletError) -> Int {
        guard stepsPerEpoch > 0 else {
            throw MartletError("the dataset holds no step", because: "no example is left", fix: "check the data report")
        }
        if let steps = recipe.maxSteps { return steps }
        let steps = (recipe.numTrainEpochs * Double(stepsPerEpoch)).rounded(.up)
        guard steps < 1e15 else {
            throw recipe.refusal(
                "num_train_epochs", "the run would never end", because: "it comes to \(steps) steps", fix: "lower it")
        }
        return max(1, Int(steps))
    }

    // MARK: The run

    func run() throws(MartletError) -> TrainingResult {
        try begin()
        var end = TrainingEnd.completed
        do throws(MartletError) {
            try validateIfDue()
            while state.step < totalSteps, !stop.isOn, !isPatienceSpent {
                try takeStep()
                try validateIfDue()
                if state.step % recipe.saveSteps == 0 { try save() }
            }
            try save()
        } catch {
            throw explained(error)
        }
        if stop.isOn && (state.step < totalSteps || isValidationDue) {
            end = .stopped
            send(.state(.stopping))
        } else if isPatienceSpent {
            end = .stoppedEarly
        }
        return try finish(end)
    }

    private func begin() throws(MartletError) {
        try FileSystem.makeFolder(recipe.outputDir)
        let start = try Resume(recipe: recipe, store: store, files: files, fresh: state).start()
        state = start.state
        state.recipe = recipe.json
        state.lossScale = model.needsLossScale ? state.lossScale ?? LossScale() : nil
        savedState = start.checkpoint == nil ? nil : state
        try AtomicFile.write(recipe.yaml, to: FileSystem.join(recipe.outputDir, "recipe.yaml"))
        metrics = try MetricsLog(folder: recipe.outputDir, keepingThrough: state.step)
        board = try TensorBoardLog(folder: recipe.outputDir, continuingAfter: state.step)
        send(.started(overview(resumedFrom: start.checkpoint)))
        for note in start.notes + parts.remarks { self.note(note) }
        try sampleBefore()
        send(.state(.training))
    }

    private func sampleBefore() throws(MartletError) {
        let file = SampleFile(folder: recipe.outputDir)
        guard state.step == 0 else { return samplesBefore = file.read() }
        samplesBefore = try parts.samples()
        if !samplesBefore.isEmpty { try file.write(samplesBefore) }
    }

    private func takeStep() throws(MartletError) {
        let clock = ContinuousClock(), began = clock.now
        let index = state.step
        let step = try parts.training.step(index)
        let (outcome, squares) = try gradients(of: step, index)
        let (norm, check) = try audit.inspect(step: index + 1, outcome, squares: squares, on: model.backend)
        let rate = schedule.learningRate(at: index)
        let scale = state.lossScale?.value
        model.update(optimizer.step(index + 1, gradientNorm: norm, learningRate: rate, lossScale: scale ?? 1))
        state.lossScale?.advance()
        state.step += 1
        state.tokenCount += step.tokenCount
        lastLoss = outcome.loss
        loadWindow.add(outcome.expertLoad_LE)
        let row = StepMetrics(
            step: state.step, epoch: epoch, loss: outcome.loss, gradientNorm: norm, learningRate: rate,
            stepTokenCount: step.tokenCount, tokenCount: state.tokenCount, stepSeconds: (clock.now - began).inSeconds,
            peakMemoryByteCount: DeviceMemory.peak(of: model.backend), auxiliaryLoss: outcome.auxiliaryLoss,
            zLoss: outcome.zLoss, lossScale: scale.map(Double.init),
            expertLoadMaxOverMean: outcome.loadMaxOverMean, routerEntropy: outcome.routerEntropy_L)
        if state.step == 1 || state.step == totalSteps || state.step % recipe.loggingSteps == 0 {
            try metrics?.append(row.json)
            try board?.append(step: row.step, row.scalars)
        }
        if let check {
            notes.append(check.description)
            send(.gradientsChecked(check))
        }
        send(.step(row))
    }

    /// Both passes over a step, and the squares of its gradients without the loss scale; at half the scale again where they are
    /// not finite.
    private func gradients(
        of step: PackedStep, _ index: Int
    ) throws(MartletError) -> (outcome: StepOutcome, squares: [Double]) {
        while true {
            let scale = state.lossScale?.value ?? 1
            let outcome = try model.trainStep(step, index: index, lossScale: scale)
            try requireFinite(outcome, index + 1)
            let squares = model.gradientSquares(), isFinite = squares.allSatisfy(\.isFinite)
            if isFinite || state.lossScale?.halve() != true {
                return (outcome, squares.map { $0 / (Double(scale) * Double(scale)) })
            }
            note(
                "step \(index + 1): a gradient is not finite at a loss scale of \(Int(scale)); the step is made again "
                    + "at \(Int(state.lossScale?.value ?? 1))")
        }
    }

    private func requireFinite(_ outcome: StepOutcome, _ step: Int) throws(MartletError) {
        let total = outcome.lossSum + outcome.auxiliaryLoss + outcome.zLoss
        guard total.isFinite else {
            let parts = "loss \(outcome.loss), auxiliary loss \(outcome.auxiliaryLoss), z loss \(outcome.zLoss)"
            let broken =
                model.parameters.first { !model.backend.isFinite($0.value) }
                ?? model.parameters.first { !model.backend.isFinite($0.gradient) }
            throw MartletError(
                "the loss is not finite", in: "step \(step)" + (broken.map { ", tensor '\($0.name)'" } ?? ""),
                because: parts + (broken == nil ? "" : "; that tensor or its gradient is the first that is not finite"),
                fix: "lower 'learning_rate' or lengthen the warmup"
                    + (model.needsLossScale ? "; in float16 what is beyond 65504 is infinite: try 'device: cpu'" : ""))
        }
    }

    // MARK: Validation

    var epoch: Double { Double(state.step) / Double(parts.training.stepsPerEpoch) }

    /// A validation belongs to this step and has not been done.
    private var isValidationDue: Bool {
        guard parts.validation != nil, state.step > 0, state.lastEvaluatedStep != state.step else { return false }
        return state.step == totalSteps || state.step % (recipe.evalSteps ?? parts.training.stepsPerEpoch) == 0
    }

    private var isPatienceSpent: Bool {
        recipe.earlyStoppingPatience.map { parts.validation != nil && state.evaluationsWithoutGain >= $0 } ?? false
    }

    private func validateIfDue() throws(MartletError) {
        guard isValidationDue, let source = parts.validation else { return }
        send(.state(.validating))
        defer { send(.state(.training)) }
        let clock = ContinuousClock(), began = clock.now
        var lossSum = 0.0, targetCount = 0
        for index in 0..<source.stepsPerEpoch {
            // An unfinished validation is done again on resume.
            if stop.isOn { return }
            let outcome = try model.evaluate(try source.step(index))
            lossSum += outcome.lossSum
            targetCount += outcome.targetCount
        }
        let loss = try validationLoss(lossSum, targetCount)
        let isBest = loss < state.best?.loss ?? .infinity
        if isBest { state.best = TrainerState.Best(step: state.step, loss: loss) }
        state.evaluationsWithoutGain = isBest ? 0 : state.evaluationsWithoutGain + 1
        state.lastEvaluatedStep = state.step
        let row = EvaluationMetrics(
            step: state.step, epoch: epoch, loss: loss, targetCount: targetCount,
            seconds: (clock.now - began).inSeconds, isBest: isBest)
        try metrics?.append(row.json)
        try board?.append(step: row.step, row.scalars)
        send(.evaluated(row))
        if isBest, recipe.loadBestModelAtEnd { try save() }
    }

    private func validationLoss(_ lossSum: Double, _ targetCount: Int) throws(MartletError) -> Double {
        guard targetCount > 0 else {
            throw MartletError(
                "the validation data holds no token that counts in the loss",
                in: "the validation after step \(state.step)",
                because: "a loss over nothing says nothing", fix: "check 'eval_dataset', 'eval_fraction' and 'loss_on'")
        }
        guard lossSum.isFinite else {
            throw MartletError(
                "the validation loss is not finite", in: "the validation after step \(state.step)",
                because: "it is \(lossSum)", fix: "lower 'learning_rate' or lengthen the warmup")
        }
        return lossSum / Double(targetCount)
    }

    // MARK: Saving and telling

    /// Writes a checkpoint, unless this state is on disk already.
    private func save() throws(MartletError) {
        guard state.step > 0, state != savedState else { return }
        send(.state(.saving))
        let path = store.path(ofStep: state.step)
        model.settle()
        try files.write(state, to: path)
        savedState = state
        try store.prune(limit: recipe.saveTotalLimit, best: state.best?.step)
        send(.saved(folder: path, step: state.step))
        send(.state(.training))
    }

    func send(_ event: TrainingEvent) {
        if case .stop = tell(event) { stop.stop() }
    }

    private func note(_ text: String) {
        notes.append(text)
        send(.note(text))
    }

    private func finish(_ end: TrainingEnd) throws(MartletError) -> TrainingResult {
        var exports: [String] = []
        if end != .stopped {
            send(.state(.exporting))
            model.settle()
            if recipe.loadBestModelAtEnd, let best = state.best { try files.readValues(store.path(ofStep: best.step)) }
            exports = try parts.export(recipe.outputDir)
        }
        let report = try writeReport(end, exports)
        let newest = try store.steps().last.map(store.path(ofStep:))
        let result = TrainingResult(
            end: end, step: state.step, lastLoss: lastLoss, best: state.best.map { ($0.step, $0.loss) },
            checkpoint: newest, exports: exports, report: report)
        send(.finished(result))
        return result
    }

    /// The error, with what is left to continue from.
    private func explained(_ error: MartletError) -> MartletError {
        var error = error
        let rest = savedState.map { "the last good checkpoint is of step \($0.step)" } ?? "there is no checkpoint yet"
        error.remedy = (error.remedy.map { $0 + "; " } ?? "") + rest
        return error
    }
}

extension Duration {
    var inSeconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
}
