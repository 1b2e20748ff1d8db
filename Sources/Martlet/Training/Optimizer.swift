package import MartletCore
package import MartletModel

/// AdamW over all parameters, in their fixed order, with the gradients clipped to a global norm.
package struct Optimizer {
    package let settings: AdamWSettings
    /// 0: never clip.
    package let maxGradNorm: Double

    package init(_ recipe: Recipe) {
        settings = AdamWSettings(
            beta1: Float(recipe.adamBeta1), beta2: Float(recipe.adamBeta2), epsilon: Float(recipe.adamEpsilon),
            weightDecay: Float(recipe.weightDecay))
        maxGradNorm = recipe.maxGradNorm
    }

    /// What gradients of this global norm are multiplied by, as torch's `clip_grad_norm_` does.
    package func clippingScale(forNorm norm: Double) -> Double {
        maxGradNorm > 0 ? min(1, maxGradNorm / (norm + 1e-6)) : 1
    }

    /// Update number `number` (from 1) with gradients that carry `lossScale`, and without it have this norm.
    package func step(
        _ number: Int, gradientNorm: Double, learningRate: Double, lossScale: Float = 1
    ) -> OptimizerStep {
        OptimizerStep(
            settings, number: number, learningRate: Float(learningRate),
            gradientScale: Float(clippingScale(forNorm: gradientNorm)) / lossScale)
    }
}
