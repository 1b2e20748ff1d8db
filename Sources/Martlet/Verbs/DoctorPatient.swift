internal import MartletCPU
package import MartletCore
internal import MartletModel

/// A tiny mixture-of-experts model and a step of awkward sizes, on which the arithmetic is examined.
package struct Patient {
    let folder: ScratchFolder
    let step: PackedStep
    let plan: ExecutionPlan
    let backend: any Backend

    /// `isEven`: of sizes that a GPU's fastest kernels take.
    package init(backend: any Backend = CPUBackend(), isEven: Bool = false) throws(MartletError) {
        self.backend = backend
        let configuration = ModelConfiguration(
            modelType: "qwen3_moe", hiddenSize: isEven ? 64 : 24, layerCount: 3, vocabularyCount: 61, queryHeadCount: 4,
            keyValueHeadCount: 2, headSize: isEven ? 128 : 10, denseInnerSize: isEven ? 64 : 28, ropeTheta: 10000,
            maximumPositions: 64, tiesEmbeddings: false,
            experts: .init(
                expertCount: 5, expertsPerToken: 2, innerSize: isEven ? 64 : 14, normalizesTopK: true),
            isSparse: [true, false, true])
        folder = try ScratchFolder("martlet-doctor")
        try RandomCheckpoint(configuration: configuration, seed: 11, standardDeviation: 0.3, dtype: .float32)
            .write(to: folder.path, replaces: true)
        var random = RandomStream(seed: 5), step = PackedStep()
        for length in [1, 7, 13] {
            let tokens = (0..<length).map { _ in Int32(random.next() % 61) }
            step.append(tokens, isTrained: tokens.map { _ in true })
        }
        self.step = step
        // Tiles that divide nothing, and one layer that recomputes.
        var plan = ExecutionPlan(stepTokens: step.tokenCount, tileTokens: 8, maximumLength: 16)
        plan.keptLayers = 1
        self.plan = plan
    }

    /// Compares the gradient of each group along a random direction with the central difference of the loss.
    func gradientVerdict(_ settings: ModelSettings) throws(MartletError) -> (isSound: Bool, detail: String) {
        let model = try Model(try Checkpoint(folder: folder.path), settings, plan, backend)
        var random = RandomStream(seed: 3)
        for parameter in model.parameters where parameter.role == .b {
            let numbers = (0..<parameter.master.count).map { _ in random.normal() * 0.1 }
            numbers.withUnsafeBytes { backend.upload($0, into: parameter.master) }
        }
        _ = try model.trainStep(step, index: 0)
        var worst = (apart: 0.0, group: "")
        var groups: [String] = []
        for parameter in model.parameters where !groups.contains(parameter.group) { groups.append(parameter.group) }
        let gradients = model.parameters.map { model.floats($0.gradient) }
        for group in groups {
            let members = model.parameters.indices.filter { model.parameters[$0].group == group }
            // Three directions, so that a wrong part does not hide behind the others by chance.
            for _ in 0..<3 {
                let apart = try apart(model, members, gradients, &random)
                if apart > worst.apart || worst.group.isEmpty { worst = (apart, group) }
            }
        }
        return (
            worst.apart < 0.01,
            "\(groups.joined(separator: ", ")) against differences of the loss: \(fixed(worst.apart * 100, 2))% apart at most"
                + " (\(worst.group))"
        )
    }

    /// How far the slope that the gradient gives is from the one that the loss has, over the gradient's norm. Directions
    /// in which a token changes its experts are left out: the loss has no slope there.
    private func apart(
        _ model: Model, _ members: [Int], _ gradients: [[Float]], _ random: inout RandomStream
    ) throws(MartletError) -> Double {
        let values = members.map { backend.floats(model.parameters[$0].master) }
        let load = try model.evaluate(step).expertLoad_LE
        let size = members.reduce(0.0) { $0 + gradients[$1].reduce(0.0) { $0 + Double($1) * Double($1) } }.squareRoot()
        guard size > 0 else { return .infinity }
        var distance = Float(min(5e-4, 2e-4 / size))
        for _ in 0..<16 {
            let directions = values.map { $0.map { _ in random.next() & 1 == 0 ? Float(1) : -1 } }
            func outcome(at distance: Float) throws(MartletError) -> StepOutcome {
                for (i, member) in members.enumerated() {
                    let moved = zip(values[i], directions[i]).map { $0 + distance * $1 }
                    moved.withUnsafeBytes { backend.upload($0, into: model.parameters[member].master) }
                }
                return try model.evaluate(step)
            }
            let above = try outcome(at: distance), below = try outcome(at: -distance)
            for (i, member) in members.enumerated() {
                values[i].withUnsafeBytes { backend.upload($0, into: model.parameters[member].master) }
            }
            guard above.expertLoad_LE == load, below.expertLoad_LE == load else {
                distance *= 0.8
                continue
            }
            let slope = members.indices.reduce(0.0) { sum, i in
                sum + zip(directions[i], gradients[members[i]]).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
            }
            return ((above.loss - below.loss) / Double(2 * distance) - slope).magnitude / size
        }
        return .infinity
    }
}

/// A folder of its own under the system's temporary folder, removed with this object.
final class ScratchFolder {
    let path: String

    init(_ name: String) throws(MartletError) {
        path = "/tmp/\(name)-\(UInt64.random(in: 0 ... .max))"
        try FileSystem.makeFolder(path)
    }

    deinit { try? FileSystem.remove(path) }
}
