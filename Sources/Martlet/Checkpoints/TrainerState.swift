internal import MartletCore
internal import MartletData

/// What a run must remember, besides the tensors, to continue as if nothing had happened: trainer_state.json.
///
/// No machine in it, and no clock unless the chat template writes the date: two runs of one recipe write the same bytes.
/// All randomness (shuffling, dropout) follows from the seed and the step.
struct TrainerState: Sendable, Equatable {
    struct Best: Sendable, Equatable {
        var step: Int
        var loss: Double
    }

    static let fileName = "trainer_state.json"
    private static let format = "martlet trainer state 1"

    /// Steps done.
    var step = 0
    var totalSteps: Int
    /// Tokens seen.
    var tokenCount = 0
    var best: Best?
    var evaluationsWithoutGain = 0
    var lastEvaluatedStep = 0
    /// nil where gradients need none.
    var lossScale: LossScale?
    var seed: Int
    var dataFingerprint: String
    /// What the chat template wrote as the time now when the run began; nil if it writes none.
    var templateDate: TemplateDate?
    /// Every key and value.
    var recipe: JSON

    init(recipe: Recipe, totalSteps: Int, dataFingerprint: String, templateDate: TemplateDate?) {
        self.totalSteps = totalSteps
        self.dataFingerprint = dataFingerprint
        self.templateDate = templateDate
        self.recipe = recipe.json
        seed = recipe.seed
    }

    var json: JSON {
        var object: JSONObject = [
            "format": .string(TrainerState.format), "step": .integer(step), "total_steps": .integer(totalSteps),
            "tokens": .integer(tokenCount), "best_step": best.map { .integer($0.step) } ?? .null,
            "best_metric": best.map { .number($0.loss) } ?? .null,
            "evaluations_without_gain": .integer(evaluationsWithoutGain),
            "last_evaluated_step": .integer(lastEvaluatedStep), "seed": .integer(seed),
            "data_fingerprint": .string(dataFingerprint),
            "template_date": templateDate.map { .string($0.description) } ?? .null, "recipe": recipe,
        ]
        if let lossScale { object["loss_scale"] = lossScale.json }
        return .object(object)
    }

    init(_ json: JSON, path: String) throws(MartletError) {
        guard json["format"]?.string == TrainerState.format, let step = json["step"]?.integer, step >= 0,
            let totalSteps = json["total_steps"]?.integer, let tokenCount = json["tokens"]?.integer,
            let evaluations = json["evaluations_without_gain"]?.integer,
            let lastEvaluated = json["last_evaluated_step"]?.integer, let seed = json["seed"]?.integer,
            let fingerprint = json["data_fingerprint"]?.string, let recipe = json["recipe"]
        else {
            throw MartletError(
                "not a trainer state that this version can read", in: path,
                because: "it lacks a field, or its format is not '\(TrainerState.format)'",
                fix: "resume from another checkpoint, or with the version of Martlet that wrote it")
        }
        self.step = step
        self.totalSteps = totalSteps
        self.tokenCount = tokenCount
        self.seed = seed
        self.recipe = recipe
        evaluationsWithoutGain = evaluations
        lastEvaluatedStep = lastEvaluated
        dataFingerprint = fingerprint
        lossScale = LossScale(json["loss_scale"])
        templateDate = json["template_date"]?.string.flatMap(TemplateDate.init)
        if let step = json["best_step"]?.integer, let loss = json["best_metric"]?.number {
            best = Best(step: step, loss: loss)
        }
    }
}
