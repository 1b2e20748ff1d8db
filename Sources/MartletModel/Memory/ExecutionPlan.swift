package import MartletCore

/// How a run uses its memory: the sizes that are fixed before the first step.
package struct ExecutionPlan: Sendable, Equatable {
    /// The most tokens that one step holds; when generating, the longest context.
    package var stepTokens: Int
    /// Rows that a layer works on at a time; a step is taken through each layer in tiles of this many rows.
    package var tileTokens: Int
    /// The longest sequence: rows of the RoPE table.
    package var maximumLength: Int
    /// The last this-many layers keep their activations for the backward pass; the others make them again.
    package var keptLayers = 0
    /// The last this-many layers keep attention's output at least: a sixth of all that a layer keeps, and what takes the
    /// longest to make again where sequences are long.
    package var keptOutputs = 0
    /// What enters each layer waits in host memory for the backward pass.
    package var hiddenOut = false
    /// So does attention's output, of the layers that do not keep it.
    package var outputsOut = false
    /// So does what the second half of a layer leaves, of this-many tiles of the layers that do not keep it, evenly spread.
    package var tilesOut = 0
    /// The first this-many layers' optimizer state lives in host memory, where the optimizer reads and writes it.
    package var stateLayersOut = 0
    /// The first this-many layers' gradients go to host memory, where the optimizer reads them.
    package var gradientLayersOut = 0
    /// All layers' weights stay decoded in memory, instead of being decoded once a pass.
    package var keepsWeights = false
    /// What temporaries may take that only save time.
    package var room = ScratchRoom.usual
    /// Layers that keep activations keep the norms' outputs and rotated queries and keys, too, instead of making them again.
    package var keepsEverything = false
    /// Generation: a key/value cache a layer instead of one buffer for all.
    package var caches = false
    /// Rows of logits that can be read back; the logits of a training step never exist whole.
    package var logitRows = 0

    package init(stepTokens: Int, tileTokens: Int, maximumLength: Int) {
        self.stepTokens = stepTokens
        self.tileTokens = min(tileTokens, stepTokens)
        self.maximumLength = maximumLength
    }

    package var tileCount: Int { ceilDiv(stepTokens, tileTokens) }

    /// What `layers` layers keep.
    package func note(layers: Int) -> String {
        let outputs = min(keptOutputs, layers) - keptLayers
        let kept = "\(keptLayers) of \(layers) layers keep activations"
        if keptLayers == layers { return kept + (keepsEverything ? " and what norms and rotations give" : "") }
        let tiles =
            tilesOut > 0
            ? ", and what follows it of \(tilesOut) of \(tileCount(layers: layers)) tiles in host memory" : ""
        if outputsOut {
            let out = layers - keptLayers - max(0, outputs)
            return kept + ", the others attention's output, \(out) of them in host memory" + tiles
        }
        return kept + (outputs > 0 ? ", \(outputs) attention's output only" : "") + ", others recompute what they need"
            + tiles
    }

    /// Tiles of all layers that do not keep activations.
    func tileCount(layers: Int) -> Int { (layers - keptLayers) * tileCount }
}
