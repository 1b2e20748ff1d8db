package import MartletCore

/// A trained tensor with what its training needs; all four have one shape.
package struct Parameter: Sendable {
    /// Stable across runs; adapters carry `lora_A` and `lora_B` in their names.
    package var name: String
    /// "attention LoRA", "experts LoRA", "router", "norms", ...
    package var group: String
    package var value: Tensor
    package var gradient: Tensor
    package var firstMoment: Tensor
    package var secondMoment: Tensor
    /// Length of the leading axis, if it counts experts: one without a token rightly has zero gradient.
    package var expertCount: Int?

    package init(
        name: String, group: String, value: Tensor, gradient: Tensor, firstMoment: Tensor, secondMoment: Tensor,
        expertCount: Int? = nil
    ) {
        self.name = name
        self.group = group
        self.value = value
        self.gradient = gradient
        self.firstMoment = firstMoment
        self.secondMoment = secondMoment
        self.expertCount = expertCount
    }
}

/// What a pass over a step found.
package struct StepOutcome: Sendable {
    package var lossSum: Double
    package var targetCount: Int
    package var auxiliaryLoss: Double
    package var zLoss: Double
    /// Tokens of each expert, one row a sparse layer.
    package var expertLoad_LE: [[Int]]
    /// Mean entropy of the routers' distributions, in nats, one a sparse layer.
    package var routerEntropy_L: [Double]

    package init(
        lossSum: Double, targetCount: Int, auxiliaryLoss: Double = 0, zLoss: Double = 0, expertLoad_LE: [[Int]] = [],
        routerEntropy_L: [Double] = []
    ) {
        self.lossSum = lossSum
        self.targetCount = targetCount
        self.auxiliaryLoss = auxiliaryLoss
        self.zLoss = zLoss
        self.expertLoad_LE = expertLoad_LE
        self.routerEntropy_L = routerEntropy_L
    }

    /// Mean loss of a target, in nats.
    package var loss: Double { lossSum / Double(max(targetCount, 1)) }
}

/// What the training loop needs of a model.
package protocol TrainableModel: AnyObject {
    var backend: any Backend { get }
    var parameters: [Parameter] { get }
    /// Zeroes the gradients, then runs forward and backward over the whole step, the loss divided by its target count.
    func trainStep(_ step: PackedStep, index: Int) throws(MartletError) -> StepOutcome
    /// Forward only, without dropout.
    func evaluate(_ step: PackedStep) throws(MartletError) -> StepOutcome
}

/// Where the steps come from. Step `index` (from 0, counted over all epochs) is the same whenever it is asked for.
package protocol StepSource: AnyObject {
    var stepsPerEpoch: Int { get }
    /// Changes whenever any step would.
    var fingerprint: String { get }
    func step(_ index: Int) throws(MartletError) -> PackedStep
}
