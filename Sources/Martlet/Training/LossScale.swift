internal import MartletCore

/// What the loss is multiplied by on its way back where gradients are float16, whose smallest step is 2^-24: a power of two,
/// so that gradients lose nothing when it is divided out again.
///
/// Dynamic loss scaling (Micikevicius et al. 2018) with the numbers of torch's GradScaler: halved where a gradient is not finite,
/// doubled after 2000 steps without that. A step is never left out: it is made again.
struct LossScale: Sendable, Equatable {
    private(set) var value: Float = 65536
    /// Steps since it changed.
    private(set) var stepCount = 0

    static let patience = 2000
    private static let largest: Float = 0x1p24

    /// False at 1: then the gradients themselves are not finite.
    mutating func halve() -> Bool {
        guard value > 1 else { return false }
        (value, stepCount) = (value / 2, 0)
        return true
    }

    /// A step was taken.
    mutating func advance() {
        stepCount += 1
        guard stepCount >= LossScale.patience, value < LossScale.largest else { return }
        (value, stepCount) = (value * 2, 0)
    }
}

extension LossScale {
    var json: JSON { ["value": .number(Double(value)), "steps": .integer(stepCount)] }

    init?(_ json: JSON?) {
        guard let value = json?["value"]?.number, value >= 1, value <= Double(LossScale.largest),
            let steps = json?["steps"]?.integer
        else { return nil }
        self.value = Float(value)
        stepCount = steps
    }
}
