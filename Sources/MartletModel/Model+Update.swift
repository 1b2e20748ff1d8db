package import MartletCore

/// What an optimizer step is told.
package struct OptimizerStep: Sendable {
    package var settings: AdamWSettings
    /// From 1.
    package var number: Int
    package var learningRate: Float
    /// What gradients are multiplied by.
    package var gradientScale: Float

    package init(_ settings: AdamWSettings, number: Int, learningRate: Float, gradientScale: Float) {
        self.settings = settings
        self.number = number
        self.learningRate = learningRate
        self.gradientScale = gradientScale
    }

    /// Updates these parameters; norms are not decayed, as in transformers' Trainer.
    package func apply(to parameters: [Parameter], on backend: any Backend) {
        guard !parameters.isEmpty else { return }
        backend.adamW(
            parameters.map { $0.adamW(weightDecay: $0.weight.isNorm ? 0 : settings.weightDecay) }, settings,
            step: number, learningRate: learningRate, gradientScale: gradientScale)
    }
}

extension Model {
    /// Updates all parameters with the gradients of the last `trainStep`. Of layers that have something in host memory the
    /// update may wait until the next pass over a step; before parameters or optimizer state are read, `settle`.
    package func update(_ step: OptimizerStep) {
        settle()
        let pending = PendingUpdate(step, memory, backend)
        let away = Set(memory.layerParameters.prefix(pending.layerCount).joined())
        step.apply(to: parameters.indices.filter { !away.contains($0) }.map { parameters[$0] }, on: backend)
        if pending.layerCount > 0 { self.pending = pending }
    }

    /// Makes up for an update that is still to be made.
    package func settle() {
        pending?.settle()
        pending = nil
    }
}
