internal import CMartletVectors

/// The loops over a row that cost an exponential an element: for the processor's vectors, or in plain Swift (level 0).
struct RowLoops: Sendable {
    let level: Int32

    func maximum(_ count: Int, _ x: Floats) -> Float {
        level > 0 ? martletMaximum(level, Int32(count), x) : MartletCPU.maximum(count, x)
    }

    /// x = e^(x - shift) in place; returns the sum, in a fixed order.
    func exponentiate(_ count: Int, _ x: Floats, minus shift: Float) -> Float {
        level > 0
            ? martletExponentiate(level, Int32(count), x, shift) : MartletCPU.exponentiate(count, x, minus: shift)
    }

    /// scores = P = exp(scores - logSumExp), dscores = P (dscores - delta), in place.
    func scoreGradients(_ count: Int, _ scores: Floats, _ dscores: Floats, logSumExp: Float, delta: Float) {
        level > 0
            ? martletScoreGradients(level, Int32(count), scores, dscores, logSumExp, delta)
            : MartletCPU.scoreGradients(count, scores, dscores, logSumExp: logSumExp, delta: delta)
    }

    /// y = silu(gate) * up
    func gatedUnit(_ count: Int, _ gate: Floats, _ up: Floats, into y: Floats) {
        level > 0
            ? martletGatedUnit(level, Int32(count), gate, up, y) : MartletCPU.gatedUnit(count, gate, up, into: y)
    }

    /// Results may overwrite inputs.
    func gatedUnitBackward(
        _ count: Int, _ gate: Floats, _ up: Floats, _ dy: Floats, into dgate: Floats, _ dup: Floats
    ) {
        level > 0
            ? martletGatedUnitBackward(level, Int32(count), gate, up, dy, dgate, dup)
            : MartletCPU.gatedUnitBackward(count, gate, up, dy, into: dgate, dup)
    }
}
