import Martlet
import MartletCPU
import MartletCore
import MartletModel

/// A model small enough to differentiate by hand, on the real backend: a norm n [3], LoRA factors A [2, 4] and B [3, 2],
/// expert weights e [2, 2]. It predicts p = sum(n) + mean(B A 1) + mean of e over the experts with tokens, and its loss is
/// (p - t)^2 / 2 a token, where t follows from the tokens. Token i goes to expert `token % expertCount`.
final class ToyModel: TrainableModel {
    enum Fault { case none, zeroNorm, zeroA, nanGradient(step: Int), nanLoss(step: Int), overflow(above: Float) }

    let backend: any Backend = CPUBackend(threads: 1)
    let parameters: [Parameter]
    var fault = Fault.none
    var needsLossScale = false
    /// Called before every training step.
    var onStep: (Int) -> Void = { _ in }
    private let arena: Arena

    init(seed: UInt64 = 1) throws {
        let arena = try backend.makeArena(byteCount: 1 << 16)
        self.arena = arena
        func make(
            _ weight: Weight, _ role: Parameter.Role, _ group: String, _ shape: Shape, _ experts: Int? = nil
        ) -> Parameter {
            Parameter(
                name: "\(weight.name).\(role.rawValue)", group: group, weight: weight, role: role,
                master: Master(value: arena.carve(shape, for: .adapters)),
                gradient: arena.carve(shape, for: .gradients),
                firstMoment: arena.carve(shape, for: .optimizer), secondMoment: arena.carve(shape, for: .optimizer),
                expertCount: experts)
        }
        parameters = [
            make(.inputNorm(0), .whole, "norms", [3]), make(.query(0), .a, "attention LoRA", [2, 4]),
            make(.query(0), .b, "attention LoRA", [3, 2]), make(.expertsDown(0), .whole, "experts", [2, 2, 1], 2),
        ]
        var random = RandomStream(seed: seed)
        for parameter in parameters {
            for tensor in [parameter.value, parameter.gradient, parameter.firstMoment, parameter.secondMoment] {
                backend.zero(tensor)
            }
            if parameter.role != .b { put((0..<parameter.value.count).map { _ in random.normal() }, parameter.value) }
        }
    }

    func floats(_ tensor: Tensor) -> [Float] {
        [Float](unsafeUninitializedCapacity: tensor.count) { buffer, count in
            backend.download(tensor, into: UnsafeMutableRawBufferPointer(buffer))
            count = tensor.count
        }
    }

    func put(_ values: [Float], _ tensor: Tensor) {
        values.withUnsafeBytes { backend.upload($0, as: .float32, into: tensor) }
    }

    /// Every byte that training changes.
    var bytes: [UInt8] {
        parameters.flatMap { [$0.value, $0.firstMoment, $0.secondMoment] }.flatMap { tensor in
            floats(tensor).flatMap { value in withUnsafeBytes(of: value.bitPattern) { Array($0) } }
        }
    }

    private func forward(_ step: PackedStep) -> (error: Float, rowSums: [Float], load: [Int], outcome: StepOutcome) {
        let n = floats(parameters[0].value), a = floats(parameters[1].value)
        let b = floats(parameters[2].value), e = floats(parameters[3].value)
        let rowSums: [Float] = [a[0] + a[1] + a[2] + a[3], a[4] + a[5] + a[6] + a[7]]
        var lora: Float = 0
        for row in 0..<3 { lora += (b[2 * row] * rowSums[0] + b[2 * row + 1] * rowSums[1]) / 3 }
        var load = [0, 0]
        for token in step.tokens { load[Int(token) % 2] += 1 }
        var experts: Float = 0
        for expert in 0..<2 where load[expert] > 0 { experts += (e[2 * expert] + e[2 * expert + 1]) / 2 }
        let target = Float(step.tokens.reduce(0, +) % 7)
        let error: Float = n[0] + n[1] + n[2] + lora + experts - target
        var outcome = StepOutcome()
        outcome.targetCount = step.targetCount
        outcome.lossSum = Double(error * error / 2) * Double(step.targetCount)
        outcome.expertLoad_LE = [load]
        return (error, rowSums, load, outcome)
    }

    func trainStep(_ step: PackedStep, index: Int, lossScale: Float) throws(MartletError) -> StepOutcome {
        onStep(index + 1)
        var (error, rowSums, load, outcome) = forward(step)
        let b = floats(parameters[2].value)
        var dn = [Float](repeating: error, count: 3)
        var da = (0..<8).map { i -> Float in error / 3 * (b[i / 4] + b[2 + i / 4] + b[4 + i / 4]) }
        let db = (0..<6).map { i -> Float in error / 3 * rowSums[i % 2] }
        let de = (0..<4).map { i -> Float in load[i / 2] > 0 ? error / 2 : 0 }
        switch fault {
        case .none: break
        case .zeroNorm: dn = [0, 0, 0]
        case .zeroA: da = da.map { _ in 0 }
        case .nanGradient(let bad): if bad == index + 1 { da[3] = .nan }
        case .overflow(let limit): if lossScale > limit { da[3] = .infinity }
        case .nanLoss(let bad): if bad == index + 1 { outcome.lossSum = .nan }
        }
        for (parameter, gradient) in zip(parameters, [dn, da, db, de]) {
            put(gradient.map { lossScale * $0 }, parameter.gradient)
        }
        return outcome
    }

    func gradientSquares() -> [Double] { backend.sumsOfSquares(of: parameters.map(\.gradient)) }

    func evaluate(_ step: PackedStep) throws(MartletError) -> StepOutcome { forward(step).outcome }
}

/// Steps of a few random tokens, each made from its index alone.
final class ToySteps: StepSource {
    let stepsPerEpoch: Int
    let fingerprint: String
    /// Every token goes to expert 0.
    var isOneSided = false

    init(stepsPerEpoch: Int, fingerprint: String = "toy") {
        self.stepsPerEpoch = stepsPerEpoch
        self.fingerprint = fingerprint
    }

    func step(_ index: Int) throws(MartletError) -> PackedStep {
        var random = RandomStream(seed: 99, counter: UInt64(index) * 16)
        var step = PackedStep()
        let tokens = (0..<8).map { _ in Int32(random.next() % 50) * (isOneSided ? 2 : 1) }
        step.append(tokens, isTrained: tokens.map { _ in true })
        return step
    }
}
