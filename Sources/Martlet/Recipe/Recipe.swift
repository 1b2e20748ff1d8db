/// Everything that decides a fine-tuning run, under the names that users of PEFT and TRL know.
///
/// A property is the recipe's key in camel case: `learning_rate` is ``learningRate``. `RecipeKey.all` is the table from
/// which reading, checking, printing and the help text are made; a new setting is a property here and a row there.
public struct Recipe: Sendable, Equatable {
    // MARK: Model and method

    /// Folder of the model: config.json, tokenizer.json, *.safetensors.
    public var model = ""
    /// What is trained.
    public var method = Method.lora

    // MARK: Data

    /// Dataset files.
    public var dataset: [String] = []
    /// Shape of a dataset row.
    public var datasetFormat = DatasetFormat.auto
    /// Dataset column for each role, where the names differ from the format's own.
    public var columns: [String: String] = [:]
    /// Dataset files to validate on.
    public var evalDataset: [String] = []
    /// Share of `dataset` held out for validation.
    public var evalFraction = 0.0
    /// Whether an unusable row is counted and skipped instead of stopping the run.
    public var skipBadRows = false
    /// Longest sequence, in tokens; also the length of a packed row.
    public var maxLength = 2048
    /// Whether several examples share a row.
    public var packing = true
    /// Which tokens count in the loss.
    public var lossOn = LossTokens.assistant

    // MARK: Steps

    /// Rows of `maxLength` tokens in a batch.
    public var perDeviceTrainBatchSize = 1
    /// Batches in an optimizer step.
    public var gradientAccumulationSteps = 8
    /// Passes over the dataset; `maxSteps` takes its place.
    public var numTrainEpochs = 1.0
    /// Optimizer steps.
    public var maxSteps: Int?
    /// Seed of everything random: adapter initialisation, shuffling, dropout.
    public var seed = 42

    // MARK: Optimizer

    /// What the optimizer keeps its moments in.
    public var optim = OptimizerType.adamw
    /// Peak learning rate; by default 2e-4 for an adapter and 1e-5 for the whole model.
    public var learningRate: Double?
    /// How the learning rate moves after the warmup.
    public var lrSchedulerType = SchedulerType.linear
    /// Steps over which the learning rate rises from 0.
    public var warmupSteps = 0
    /// The same as a share of all steps.
    public var warmupRatio = 0.0
    /// Decoupled weight decay of AdamW; norms and biases are not decayed.
    public var weightDecay = 0.0
    /// Decay of the first moment.
    public var adamBeta1 = 0.9
    /// Decay of the second moment.
    public var adamBeta2 = 0.999
    /// Added to the denominator of the update.
    public var adamEpsilon = 1e-8
    /// Gradients are scaled down to this global norm; 0 leaves them alone.
    public var maxGradNorm = 1.0

    // MARK: Adapter

    /// Rank of the adapter.
    public var loraR = 16
    /// The adapter's delta is scaled by alpha / r.
    public var loraAlpha = 32.0
    /// Probability of dropping an input of the adapter.
    public var loraDropout = 0.0
    /// Scale by alpha / sqrt(r) instead.
    public var useRslora = false
    /// Projections that get an adapter.
    public var targetModules = ["all-linear"]

    // MARK: Router

    /// Whether the routers are trained.
    public var trainRouter = false
    /// Weight of the load-balancing loss; by default the model's own.
    public var routerAuxLossCoef: Double?
    /// Weight of the router z loss.
    public var routerZLossCoef = 0.0

    // MARK: Validation, saving, logging

    /// Steps between validations; by default one at the end of each epoch.
    public var evalSteps: Int?
    /// Steps between checkpoints.
    public var saveSteps = 500
    /// Checkpoints kept; the newest and the best are never deleted.
    public var saveTotalLimit: Int?
    /// Validations without a better loss after which the run stops.
    public var earlyStoppingPatience: Int?
    /// Whether the run ends with the weights of the best validation.
    public var loadBestModelAtEnd = false
    /// Steps between rows of metrics.jsonl.
    public var loggingSteps = 1
    /// Prompts of the validation or training data that the report shows, continued before the training and after it.
    public var samplePrompts: Int?
    /// Folder for everything the run writes.
    public var outputDir = "output"
    /// `auto`, `never`, or the folder of a checkpoint.
    public var resume = "auto"
    /// Forms in which the result is written.
    public var export: [ExportLayout]?

    // MARK: Machine

    /// Most memory the run may plan for, in bytes.
    public var memoryLimit: Int?
    /// Tokens that go through a layer at a time.
    public var tileTokens: Int?
    /// Where to compute.
    public var device = ComputeDevice.auto
    /// CPU threads.
    public var threads: Int?
    /// Whether the same seed gives the same bytes.
    public var deterministic = true

    /// Where each key that was given stands: "recipe.yaml, line 3", "--set".
    package var places: [String: String] = [:]

    /// A recipe with the defaults for everything else.
    public init(model: String, dataset: [String]) {
        self.model = model
        self.dataset = dataset
    }

    init() {}
}

extension Recipe {
    /// What is trained: a low-rank adapter or every weight.
    public enum Method: String, Sendable, CaseIterable { case lora, full }

    /// The shape of a dataset row.
    public enum DatasetFormat: String, Sendable, CaseIterable {
        case auto, chat, sharegpt, alpaca, text
        case promptCompletion = "prompt_completion"
    }

    /// The tokens that count in the loss: the assistant's, all of them, or the last assistant turn's.
    public enum LossTokens: String, Sendable, CaseIterable { case assistant, all, last }

    /// AdamW with moments in float32, or in 8 bits (a quarter of the memory).
    public enum OptimizerType: String, Sendable, CaseIterable {
        case adamw
        case adamw8Bit = "adamw_8bit"
    }

    /// The learning-rate schedules of transformers.
    public enum SchedulerType: String, Sendable, CaseIterable {
        case constant
        case constantWithWarmup = "constant_with_warmup"
        case linear, cosine
    }

    /// A form in which the result is written.
    public enum ExportLayout: String, Sendable, CaseIterable {
        /// A PEFT adapter with one tensor for all experts of a layer.
        case fused
        /// A PEFT adapter with a tensor for each expert (vLLM's "2D" form).
        case perExpert = "per_expert"
        /// A whole checkpoint with the result inside.
        case merged
    }

    /// ``learningRate``, or the method's default.
    public var effectiveLearningRate: Double { learningRate ?? (method == .lora ? 2e-4 : 1e-5) }

    /// ``export``, or what the run's result fits in: an adapter cannot hold whole weights.
    public var effectiveExport: [ExportLayout] { export ?? (method == .lora && !trainRouter ? [.fused] : [.merged]) }

    /// The recipe with every default that depends on other keys filled in.
    package var resolved: Recipe {
        var recipe = self
        recipe.learningRate = effectiveLearningRate
        recipe.export = effectiveExport
        return recipe
    }

    /// Whether the run validates.
    public var validates: Bool { !evalDataset.isEmpty || evalFraction > 0 }
}
