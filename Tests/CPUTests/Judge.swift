import MartletCPU
import MartletCore
import MartletTestSupport
import Testing

/// An op written out naively in double precision: results by name, from the case's inputs as doubles.
///
/// A result `objective` (one number) is what the gradients are of; without it that is the sum of <dresult, result> over
/// the results that the case has a gradient for.
typealias Formula = (OpCase, [String: [Double]]) -> [String: [Double]]

/// The backends that every op is judged on.
func makeJudged() -> [CPUBackend] { Arithmetic.available.map { CPUBackend(threads: 2, arithmetic: $0) } }

/// Runs the case on every backend; results must equal the formula and gradients its central differences. A large case is
/// differentiated along one random direction for each input only.
func judge(
    _ c: OpCase, by formula: Formula, tolerance: Double = 1e-5, gradientTolerance: Double = 1e-4, isLarge: Bool = false,
    sourceLocation: SourceLocation = #_sourceLocation
) throws {
    let inputs = c.inputs.mapValues { $0.map(Double.init) }
    let expected = formula(c, inputs)
    let runs = try makeJudged().map { backend in (backend.name, try c.run(on: backend)) }
    for (backend, run) in runs {
        #expect(run.isContained, "\(c.name) on \(backend) wrote beyond its tensors", sourceLocation: sourceLocation)
        for (name, values) in expected where name != "objective" {
            expectClose(
                run.results[name, default: []], values, "\(c.name), \(name) on \(backend)", tolerance: tolerance,
                sourceLocation: sourceLocation)
        }
    }
    let gradients = runs[0].1.results.keys.filter { inputs[String($0.dropFirst())] != nil && $0.hasPrefix("d") }
    for name in gradients.sorted() {
        let probes = makeProbes(inputs[String(name.dropFirst()), default: []].count, isLarge: isLarge)
        let slopes = probes.map { slope(of: formula, c, inputs, String(name.dropFirst()), along: $0) }
        for (backend, run) in runs {
            let start = c.accumulation.adds ? c.inputs["\(name).start"] : nil
            let values = run.results[name, default: []].enumerated().map { Double($1) - Double(start?[$0] ?? 0) }
            let found = probes.map { probe in Float(zip(probe, values).reduce(0) { $0 + $1.0 * $1.1 }) }
            expectClose(
                found, slopes, "\(c.name), \(name) on \(backend)", tolerance: gradientTolerance,
                sourceLocation: sourceLocation)
        }
    }
}

/// Directions to differentiate along: every axis of a small input; of a large one its ends, some axes between, and
/// three random directions, which touch every element.
private func makeProbes(_ count: Int, isLarge: Bool) -> [[Double]] {
    func axis(_ index: Int) -> [Double] { (0..<count).map { $0 == index ? 1 : 0 } }
    if count <= 64 && !isLarge { return (0..<count).map(axis) }
    var stream = RandomStream(seed: UInt64(count))
    let axes = [0, count - 1] + (0..<4).map { _ in Int.random(in: 0..<count, using: &stream) }
    let directions = (0..<(isLarge ? 1 : 3)).map { _ in
        let direction = (0..<count).map { _ in Double(stream.normal()) }
        let length = direction.reduce(0) { $0 + $1 * $1 }.squareRoot()
        return direction.map { $0 / length }
    }
    return isLarge ? directions : axes.map(axis) + directions
}

private func slope(
    of formula: Formula, _ c: OpCase, _ inputs: [String: [Double]], _ name: String, along direction: [Double]
) -> Double {
    func objective(_ step: Double) -> Double {
        var moved = inputs
        moved[name] = zip(inputs[name, default: []], direction).map { $0 + step * $1 }
        let results = formula(c, moved)
        if let objective = results["objective"] { return objective[0] }
        return results.reduce(0) { sum, result in
            sum + zip(inputs["d\(result.key)", default: []], result.value).reduce(0) { $0 + $1.0 * $1.1 }
        }
    }
    let step = 1e-4
    return (objective(step) - objective(-step)) / (2 * step)
}
