package import MartletCore
package import Testing

/// Records an issue unless every element of `actual` is within `tolerance` x max|expected| of `expected`.
///
/// The tolerance is relative to the reference's own size, so zeros never pass for small numbers. Where the reference is
/// not finite the same value is wanted. `shape`, if given, tells the coordinate of the first bad element.
package func expectClose(
    _ actual: [Float], _ expected: [Double], _ what: String, tolerance: Double, shape: Shape? = nil,
    sourceLocation: SourceLocation = #_sourceLocation
) {
    if let problem = mismatch(actual, expected, tolerance: tolerance, shape: shape) {
        Issue.record("\(what): \(problem)", sourceLocation: sourceLocation)
    }
}

/// What is wrong with `actual`, or nil.
package func mismatch(_ actual: [Float], _ expected: [Double], tolerance: Double, shape: Shape? = nil) -> String? {
    guard actual.count == expected.count else { return "\(actual.count) values for \(expected.count)" }
    let size = expected.reduce(0) { $1.isFinite ? max($0, $1.magnitude) : $0 }
    var bad = 0, worst = 0.0, first: Int?
    for i in expected.indices {
        let wanted = expected[i], found = Double(actual[i])
        let error = wanted.isFinite ? (found - wanted).magnitude : found == wanted ? 0 : .infinity
        if error <= tolerance * size || (wanted.isNaN && found.isNaN) { continue }
        bad += 1
        worst = error.isNaN ? .nan : max(worst, error)
        first = first ?? i
    }
    guard let first else { return nil }
    let place = shape.map { coordinate(first, $0) } ?? "[\(first)]"
    return "\(bad) of \(expected.count) differ, first at \(place): \(actual[first]) for \(expected[first]); "
        + "worst error \(worst) where at most \(tolerance * size) may be"
}

private func coordinate(_ index: Int, _ shape: Shape) -> String {
    var rest = index, parts: [Int] = []
    for extent in shape.array.reversed() {
        parts.insert(rest % extent, at: 0)
        rest /= extent
    }
    return "\(parts)"
}
