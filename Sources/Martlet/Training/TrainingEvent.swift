/// What a run tells while it goes, in order.
public enum TrainingEvent: Sendable {
    /// Everything known before the first step.
    case started(TrainingOverview)
    /// The run does something else now.
    case state(TrainingState)
    /// A step is done.
    case step(StepMetrics)
    /// Which trained tensors have received a gradient.
    case gradientsChecked(GradientCheck)
    /// A validation is done.
    case evaluated(EvaluationMetrics)
    /// A checkpoint is on disk.
    case saved(folder: String, step: Int)
    /// Something worth knowing that does not stop the run.
    case note(String)
    /// The run is over.
    case finished(TrainingResult)
}

/// What the receiver of an event wants.
public enum TrainingAnswer: Sendable {
    case proceed
    /// Finish the step, save, and leave.
    case stop
}

/// What a run is doing.
public enum TrainingState: String, Sendable {
    case training, validating, saving, exporting, stopping
}

/// What is known before the first step.
public struct TrainingOverview: Sendable {
    /// A labelled fact.
    public struct Row: Sendable, Equatable {
        /// What it is.
        public var name: String
        /// Its value, as shown.
        public var value: String
        /// Why, where there was a choice.
        public var note: String?

        /// A row of a table.
        public init(_ name: String, _ value: String, note: String? = nil) {
            self.name = name
            self.value = value
            self.note = note
        }
    }

    /// The memory table; the last row is the sum.
    public var memory: [Row]
    /// What is trained.
    public var trainable: TrainableSet
    /// What the dataset turned out to be.
    public var data: [Row]
    /// Steps of the whole run.
    public var totalSteps: Int
    /// Steps of one pass over the dataset.
    public var stepsPerEpoch: Int
    /// Steps already done, of a resumed run.
    public var doneSteps: Int
    /// The checkpoint the run continues from.
    public var resumedFrom: String?
}

/// How a run ended.
public enum TrainingEnd: String, Sendable {
    /// All steps are done.
    case completed
    /// Validation stopped getting better.
    case stoppedEarly = "stopped early"
    /// Somebody asked.
    case stopped
}

/// What a run leaves.
public struct TrainingResult: Sendable {
    /// How it ended.
    public var end: TrainingEnd
    /// Steps done.
    public var step: Int
    /// Mean loss of the last step's targets, in nats; nil if no step was done now.
    public var lastLoss: Double?
    /// The best validation: step and mean loss.
    public var best: (step: Int, loss: Double)?
    /// The newest checkpoint.
    public var checkpoint: String?
    /// The adapters and checkpoints written at the end.
    public var exports: [String]
    /// The report, a page to open in a browser.
    public var report: String
}
