import Foundation
import MartletCPU
import MartletCore
import MartletModel
import Testing

/// One case of ModelGoldens (docs/goldens.md): a tiny checkpoint and what transformers and PEFT compute with it.
struct Golden: CustomTestStringConvertible {
    let name: String
    let folder: String
    let reference: SafeTensorsFile
    let checkpoint: Checkpoint

    static let names = [
        "moe_seed0", "moe_seed1", "moe_seed2", "moe_unnormalized", "moe_first_dense", "moe_every_second", "moe_tied",
        "moe_rslora", "dense_tied", "dense_untied",
    ]

    init(_ name: String) throws {
        self.name = name
        folder = try #require(Bundle.module.resourcePath) + "/ModelGoldens/\(name)"
        reference = try SafeTensorsFile(folder + "/reference.safetensors")
        checkpoint = try Checkpoint(folder: folder)
    }

    var testDescription: String { name }

    func floats(_ key: String) throws -> [Float] { try #require(reference[key], "no golden \(key)").floats() }
    func shape(_ key: String) throws -> [Int] { try #require(reference[key], "no golden \(key)").shape }

    func integers(_ key: String) throws -> [Int32] {
        try #require(reference[key], "no golden \(key)").withBytes { Array($0.bindMemory(to: Int32.self)) }
    }

    /// The two sequences of the golden, one step; the labels count as transformers counts them.
    func step(tokensPerSequence: Int? = nil) throws -> PackedStep {
        let ids = try integers("input.input_ids"), labels = try integers("input.labels")
        let length = try shape("input.input_ids")[1]
        var step = PackedStep()
        for start in stride(from: 0, to: ids.count, by: length) {
            step.append(Array(ids[start..<start + length]), isTrained: labels[start..<start + length].map { $0 >= 0 })
        }
        return step
    }

    func model(
        _ settings: ModelSettings, tile: Int = 2048, kept: Int = 0, outputs: Int = 0, keepsWeights: Bool = false,
        context: Int? = nil, backend: (any Backend)? = nil,
        planning change: (inout ExecutionPlan) -> Void = { _ in }
    ) throws -> Model {
        var plan = ExecutionPlan(stepTokens: context ?? 24, tileTokens: tile, maximumLength: context ?? 24)
        plan.keptLayers = kept
        plan.keptOutputs = outputs
        plan.keepsWeights = keepsWeights
        plan.caches = context != nil
        plan.logitRows = plan.tileTokens
        change(&plan)
        return try Model(checkpoint, settings, plan, backend ?? CPUBackend())
    }
}

/// Checks values against a reference: the largest difference within `tolerance` of the reference's largest value.
func expectClose(
    _ actual: [Float], _ expected: [Float], relative tolerance: Float, _ what: String,
    sourceLocation: SourceLocation = #_sourceLocation
) {
    guard actual.count == expected.count else {
        Issue.record("\(what): \(actual.count) values, expected \(expected.count)", sourceLocation: sourceLocation)
        return
    }
    let size = expected.reduce(0) { max($0, $1.magnitude) }
    expectClose(actual, expected, absolute: tolerance * max(size, 1e-20), what, sourceLocation: sourceLocation)
}

func expectClose(
    _ actual: [Float], _ expected: [Float], absolute tolerance: Float, _ what: String,
    sourceLocation: SourceLocation = #_sourceLocation
) {
    guard actual.count == expected.count else {
        Issue.record("\(what): \(actual.count) values, expected \(expected.count)", sourceLocation: sourceLocation)
        return
    }
    for i in actual.indices where !((actual[i] - expected[i]).magnitude <= tolerance) {
        Issue.record(
            "\(what): element \(i) is \(actual[i]), expected \(expected[i]) within \(tolerance)",
            sourceLocation: sourceLocation)
        return
    }
}
