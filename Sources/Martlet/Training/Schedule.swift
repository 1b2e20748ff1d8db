internal import MartletCore

/// The learning rate of each step, as transformers' `get_scheduler` counts: the first step of a warmup has rate 0.
package struct Schedule: Sendable {
    package var type: Recipe.SchedulerType
    package var peak: Double
    package var warmupSteps: Int
    package var totalSteps: Int

    package init(type: Recipe.SchedulerType, peak: Double, warmupSteps: Int, totalSteps: Int) {
        self.type = type
        self.peak = peak
        self.warmupSteps = warmupSteps
        self.totalSteps = totalSteps
    }

    package init(_ recipe: Recipe, totalSteps: Int) {
        let fromRatio = Int((Double(totalSteps) * recipe.warmupRatio).rounded(.up))
        self.init(
            type: recipe.lrSchedulerType, peak: recipe.effectiveLearningRate,
            warmupSteps: recipe.warmupSteps > 0 ? recipe.warmupSteps : fromRatio, totalSteps: totalSteps)
    }

    /// The rate of the step with this index, from 0.
    package func learningRate(at index: Int) -> Double {
        if type != .constant, index < warmupSteps { return peak * (Double(index) / Double(max(1, warmupSteps))) }
        let length = Double(max(1, totalSteps - warmupSteps))
        return switch type {
        case .constant, .constantWithWarmup: peak
        case .linear: peak * max(0, Double(totalSteps - index) / length)
        case .cosine: peak * max(0, 0.5 * (1 + (Double.pi * (Double(index - warmupSteps) / length)).cosine))
        }
    }
}
