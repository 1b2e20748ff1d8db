package import MartletCore
internal import MartletModel

/// The numbers of one step: a row of metrics.jsonl.
public struct StepMetrics: Sendable, Equatable {
    /// Steps done, this one included.
    public var step: Int
    /// Passes over the dataset so far.
    public var epoch: Double
    /// Mean loss of a target, in nats, without the auxiliary losses.
    public var loss: Double
    /// Global norm of the gradients before clipping.
    public var gradientNorm: Double
    /// Learning rate of the step.
    public var learningRate: Double
    /// Tokens of the step.
    public var stepTokenCount: Int
    /// Tokens since the start of the run.
    public var tokenCount: Int
    /// Wall time of the step.
    public var stepSeconds: Double
    /// The most memory the process has had resident so far.
    public var peakMemoryByteCount: Int
    /// Load-balancing loss, weighted.
    public var auxiliaryLoss: Double
    /// Router z loss, weighted.
    public var zLoss: Double
    /// What gradients were multiplied by on their way, where they are float16.
    public var lossScale: Double?
    /// For each sparse layer, the load of its busiest expert over the mean load: 1 is balance.
    public var expertLoadMaxOverMean: [Double]
    /// For each sparse layer, the entropy of its expert load over its largest value: 1 is balance.
    public var routerEntropy: [Double]

    /// Tokens in a second.
    public var tokensPerSecond: Double { stepSeconds > 0 ? Double(stepTokenCount) / stepSeconds : 0 }

    package var json: JSON {
        var row: JSONObject = [
            "step": .integer(step), "epoch": .number(epoch), "loss": .number(loss), "grad_norm": .number(gradientNorm),
            "learning_rate": .number(learningRate), "tokens_per_second": .number(tokensPerSecond),
            "step_seconds": .number(stepSeconds), "step_tokens": .integer(stepTokenCount),
            "tokens": .integer(tokenCount),
            "peak_memory_bytes": .integer(peakMemoryByteCount),
        ]
        if let lossScale { row["loss_scale"] = .number(lossScale) }
        if !expertLoadMaxOverMean.isEmpty {
            row["router_aux_loss"] = .number(auxiliaryLoss)
            row["router_z_loss"] = .number(zLoss)
            row["expert_load_max_over_mean"] = .array(expertLoadMaxOverMean.map(JSON.number))
            row["router_entropy"] = .array(routerEntropy.map(JSON.number))
        }
        return .object(row)
    }

    /// Tag and value of each curve in TensorBoard.
    var scalars: [(tag: String, value: Double)] {
        var scalars = [
            ("train/loss", loss), ("train/grad_norm", gradientNorm), ("train/learning_rate", learningRate),
            ("train/epoch", epoch), ("train/tokens_per_second", tokensPerSecond),
            ("train/peak_memory_bytes", Double(peakMemoryByteCount)),
        ]
        if let lossScale { scalars.append(("train/loss_scale", lossScale)) }
        if let busiest = expertLoadMaxOverMean.max() {
            scalars += [
                ("router/aux_loss", auxiliaryLoss), ("router/z_loss", zLoss), ("router/load_max_over_mean", busiest),
            ]
        }
        if !routerEntropy.isEmpty {
            scalars.append(("router/entropy", routerEntropy.reduce(0, +) / Double(routerEntropy.count)))
        }
        return scalars
    }
}

/// The numbers of one validation: a row of metrics.jsonl.
public struct EvaluationMetrics: Sendable, Equatable {
    /// Steps done.
    public var step: Int
    /// Passes over the dataset so far.
    public var epoch: Double
    /// Mean loss of a target, in nats.
    public var loss: Double
    /// Targets that the loss is the mean of.
    public var targetCount: Int
    /// Wall time.
    public var seconds: Double
    /// Whether no earlier validation was as good.
    public var isBest: Bool

    /// e to the loss.
    public var perplexity: Double { loss.exponential }

    package var json: JSON {
        [
            "step": .integer(step), "epoch": .number(epoch), "eval_loss": .number(loss),
            "eval_perplexity": .number(perplexity), "eval_targets": .integer(targetCount),
            "eval_seconds": .number(seconds),
            "eval_is_best": .bool(isBest),
        ]
    }

    var scalars: [(tag: String, value: Double)] { [("eval/loss", loss), ("eval/perplexity", perplexity)] }
}

extension StepOutcome {
    /// For each sparse layer, the busiest expert's load over the mean.
    var loadMaxOverMean: [Double] {
        expertLoad_LE.map { load in
            let total = load.reduce(0, +)
            return total == 0 ? 0 : Double(load.max() ?? 0) * Double(load.count) / Double(total)
        }
    }
}
