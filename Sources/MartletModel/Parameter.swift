package import MartletCore

/// A trained tensor with its gradient and its optimizer state.
package struct Parameter: Sendable {
    package enum Role: String, Sendable { case whole = "weight", a = "lora_A", b = "lora_B" }

    /// Stable name: "layers.3.experts_down.lora_A".
    package var name: String
    package var group: String
    package var weight: Weight
    package var role: Role
    package var master: Master
    package var gradient: Tensor
    /// What the backward pass adds to: the gradient itself, or, where that lives in host memory, what is copied there.
    package var accumulator: Tensor
    package var firstMoment: Tensor
    package var secondMoment: Tensor
    /// Of moments in 8 bits; nil where they are float32.
    package var scales: MomentScales?
    /// Extent of the leading per-expert axis: an expert that saw no token rightly has a zero gradient.
    package var expertCount: Int?

    package init(
        name: String, group: String, weight: Weight, role: Role, master: Master, gradient: Tensor,
        accumulator: Tensor? = nil, firstMoment: Tensor, secondMoment: Tensor, scales: MomentScales? = nil,
        expertCount: Int? = nil
    ) {
        self.name = name
        self.group = group
        self.weight = weight
        self.role = role
        self.master = master
        self.gradient = gradient
        self.accumulator = accumulator ?? gradient
        self.firstMoment = firstMoment
        self.secondMoment = secondMoment
        self.scales = scales
        self.expertCount = expertCount
    }

    /// What ops compute with.
    package var value: Tensor { master.value }

    /// Whether its gradient must be zero before a backward pass; what projections and experts make overwrites what was there.
    package var startsFromZero: Bool { weight.isNorm || weight.layer == nil }

    /// The optimizer's memory of it, under names that torch and bitsandbytes gave.
    package var state: [(name: String, tensor: Tensor)] {
        let moments = [("exp_avg", firstMoment), ("exp_avg_sq", secondMoment)]
        return moments + (scales.map { [("exp_avg_absmax", $0.first), ("exp_avg_sq_absmax", $0.second)] } ?? [])
    }

    /// As the optimizer updates it.
    package func adamW(weightDecay: Float) -> AdamWParameter {
        AdamWParameter(
            master: master, gradient: gradient, firstMoment: firstMoment, secondMoment: secondMoment, scales: scales,
            weightDecay: weightDecay)
    }
}

/// What one pass over a step found.
package struct StepOutcome: Sendable {
    /// Sum of the cross-entropy over the targets, in nats.
    package var lossSum = 0.0
    package var targetCount = 0
    /// Load-balancing and z losses, already times their coefficients; 0 unless the router is trained.
    package var auxiliaryLoss = 0.0
    package var zLoss = 0.0
    /// Rows that each expert got, one list a sparse layer.
    package var expertLoad_LE: [[Int]] = []

    package init() {}

    /// Mean cross-entropy a target.
    package var loss: Double { targetCount == 0 ? 0 : lossSum / Double(targetCount) }

    /// Entropy of each sparse layer's expert load over its largest value, ln E: 1 is balanced, 0 is collapsed.
    package var routerEntropy_L: [Double] {
        expertLoad_LE.map { load in
            let total = Double(load.reduce(0, +))
            guard total > 0, load.count > 1 else { return 1 }
            let entropy = load.reduce(0.0) { sum, n in
                n == 0 ? sum : sum - Double(n) / total * (Double(n) / total).logarithm
            }
            return entropy / Double(load.count).logarithm
        }
    }
}
