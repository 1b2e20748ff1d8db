internal import MartletCore
internal import MartletModel

/// Which trained tensors have received a gradient so far. Made after step 1, and again when the last one has.
public struct GradientCheck: Sendable, Equatable, CustomStringConvertible {
    /// The step after whose backward pass this was found, from 1.
    public var step: Int
    /// Trained tensors.
    public var tensorCount: Int
    /// Those that have had a gradient other than zero.
    public var reachedCount: Int
    /// LoRA A tensors whose B is still all zero, so that their gradient is zero by definition.
    public var waitingCount: Int
    /// Blocks of per-expert tensors, one an expert and tensor.
    public var expertBlockCount: Int
    /// Blocks without gradient whose expert got no token in the step.
    public var idleBlockCount: Int
    /// Blocks without gradient although their expert got tokens: of those, none led to a token that counts in the loss.
    public var unreachedBlockCount: Int

    /// The check in a few sentences.
    public var description: String {
        var text = "step \(step): \(reachedCount) of \(tensorCount) trained tensors have received a gradient."
        if waitingCount > 0 {
            text +=
                " \(waitingCount) LoRA A tensors have none yet, as it must be while their B is zero; "
                + "they are checked at the first step at which B is not."
        }
        if idleBlockCount > 0 {
            text +=
                " \(idleBlockCount) of \(expertBlockCount) expert blocks had none because their experts got no token."
        }
        if unreachedBlockCount > 0 {
            text +=
                " \(unreachedBlockCount) of \(expertBlockCount) expert blocks had none although their experts got tokens; "
                + "that is right only if none of those tokens counts in the loss."
        }
        return text
    }
}

/// Watches over the gradients: finite at every step, and not zero in any trained tensor without a reason.
///
/// y = W x + B (A x), with B = 0 at first: then dB = dy (A x)^T is not zero and dA = B^T dy x^T is. So every B must have a
/// gradient at step 1, and every A at the first step whose B is not zero: step 2, or later if a warmup starts at rate 0.
/// The A of experts may need more steps: the experts of step 2 may be others than those whose B step 1 has moved.
struct GradientAudit {
    private let parameters: [Parameter]
    /// For each LoRA A, the index of its B.
    private let partner: [Int: Int]
    private var pending: Set<Int>
    /// For how many steps an A has had no gradient although its B is not zero.
    private var overdue: [Int: Int] = [:]
    private static let expertPatience = 8
    private var blocks = Blocks()
    private var isFirst = true

    private struct Blocks { var count = 0, idle = 0, unreached = 0 }

    init(_ parameters: [Parameter]) {
        self.parameters = parameters
        let ofB = Dictionary(
            parameters.enumerated().filter { $1.role == .b }.map { ($1.weight, $0) },
            uniquingKeysWith: { first, _ in first })
        var partner: [Int: Int] = [:]
        for (i, parameter) in parameters.enumerated() where parameter.role == .a { partner[i] = ofB[parameter.weight] }
        self.partner = partner
        pending = Set(parameters.indices)
    }

    /// Examines the gradients of step `step` (from 1) before they are applied. Returns the global norm, and a check when
    /// there is something to tell.
    mutating func inspect(
        step: Int, _ outcome: StepOutcome, squares allSquares: [Double], on backend: any Backend
    ) throws(MartletError) -> (norm: Double, check: GradientCheck?) {
        var total = 0.0
        var newlyReached = false
        for (i, (parameter, squares)) in zip(parameters, allSquares).enumerated() {
            guard squares.isFinite else { throw notFinite(parameter, step, outcome) }
            total += squares
            if squares > 0, pending.contains(i) { newlyReached = true }
            if squares > 0 { pending.remove(i) }
        }
        defer { isFirst = false }
        guard !pending.isEmpty || newlyReached || isFirst else { return (total.squareRoot(), nil) }
        if isFirst { countBlocks(outcome, on: backend) }
        for i in pending.sorted() where !isWaiting(i, on: backend) { throw noGradient(parameters[i], step) }
        let isNews = isFirst || (newlyReached && pending.isEmpty)
        return (total.squareRoot(), isNews ? check(step) : nil)
    }

    /// Whether zero may be the right gradient: an A whose B is zero, or, of experts, not zero for long.
    private mutating func isWaiting(_ i: Int, on backend: any Backend) -> Bool {
        guard let b = partner[i] else { return false }
        if backend.isZero(parameters[b].master) { return true }
        overdue[i, default: 0] += 1
        return parameters[i].expertCount != nil && overdue[i, default: 0] < GradientAudit.expertPatience
    }

    private mutating func countBlocks(_ outcome: StepOutcome, on backend: any Backend) {
        let layers = Set(parameters.filter { $0.expertCount != nil }.compactMap(\.weight.layer)).sorted()
        for (i, parameter) in parameters.enumerated() {
            guard let count = parameter.expertCount, parameter.gradient.shape[0] == count, !pending.contains(i) else {
                continue
            }
            let row = parameter.weight.layer.flatMap(layers.firstIndex(of:))
            let load = layers.count == outcome.expertLoad_LE.count ? row.map { outcome.expertLoad_LE[$0] } : nil
            let squares = backend.sumsOfSquares(of: (0..<count).map { parameter.gradient.rows($0..<$0 + 1) })
            for expert in 0..<count {
                blocks.count += 1
                guard squares[expert] == 0 else { continue }
                if let load, expert < load.count, load[expert] > 0 { blocks.unreached += 1 } else { blocks.idle += 1 }
            }
        }
    }

    private func check(_ step: Int) -> GradientCheck {
        GradientCheck(
            step: step, tensorCount: parameters.count, reachedCount: parameters.count - pending.count,
            waitingCount: pending.count, expertBlockCount: blocks.count, idleBlockCount: blocks.idle,
            unreachedBlockCount: blocks.unreached)
    }

    private func noGradient(_ parameter: Parameter, _ step: Int) -> MartletError {
        let isA = parameter.role == .a
        return MartletError(
            "a trained tensor gets no gradient", in: "step \(step), tensor '\(parameter.name)'",
            because: "all \(parameter.gradient.count) elements of its gradient are zero"
                + (isA ? " although its B is not" : "") + "; training it would have no effect, silently",
            fix:
                "take it out of the trained set ('target_modules', 'train_router'); if it belongs there, report this as a bug"
        )
    }

    private func notFinite(_ parameter: Parameter, _ step: Int, _ outcome: StepOutcome) -> MartletError {
        MartletError(
            "a gradient is not finite", in: "step \(step), tensor '\(parameter.name)' (the first of them)",
            because: "it holds an infinity or a NaN; the loss of the step is \(fixed(outcome.loss, 4))",
            fix: "lower 'learning_rate' or lengthen the warmup")
    }
}
