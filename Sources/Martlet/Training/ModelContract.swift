package import MartletCore
package import MartletModel

/// What the training loop needs of a model.
package protocol TrainableModel: AnyObject {
    var backend: any Backend { get }
    /// Everything that is trained, in a fixed order, under stable names.
    var parameters: [Parameter] { get }
    /// Zeroes the gradients, then runs forward and backward over the whole step, the loss divided by its target count. The
    /// gradients are left multiplied by `lossScale`.
    func trainStep(_ step: PackedStep, index: Int, lossScale: Float) throws(MartletError) -> StepOutcome
    /// Whether small gradients vanish without a loss scale.
    var needsLossScale: Bool { get }
    /// Updates the parameters with the gradients of the last `trainStep`; a model may put it off until `settle`.
    func update(_ step: OptimizerStep)
    /// Comes before parameters or optimizer state are read.
    func settle()
    /// The sum of squares of each parameter's gradient, after a `trainStep`.
    func gradientSquares() -> [Double]
    /// Forward only, without dropout.
    func evaluate(_ step: PackedStep) throws(MartletError) -> StepOutcome
}

extension TrainableModel {
    package var needsLossScale: Bool { backend.computeDType == .float16 }
    package func update(_ step: OptimizerStep) { step.apply(to: parameters, on: backend) }
    package func settle() {}
}

extension Model: TrainableModel {}

/// Where the steps come from. Step `index` (from 0, counted over all epochs) is the same whenever it is asked for.
package protocol StepSource: AnyObject {
    var stepsPerEpoch: Int { get }
    /// Changes whenever any step would.
    var fingerprint: String { get }
    func step(_ index: Int) throws(MartletError) -> PackedStep
}
