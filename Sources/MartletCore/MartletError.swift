/// An error that says what is wrong, where, why, and what to do now.
///
/// Printed as four short lines:
///
///     adapter target 'q_projj' matches no layer
///       in      recipe.yaml, key "target_modules"
///       because this model has: q_proj, k_proj, v_proj, o_proj
///       fix     did you mean 'q_proj'?
public struct MartletError: Error, CustomStringConvertible, Sendable, Equatable {
    /// What is wrong, in one sentence.
    public var problem: String
    /// Where: a file, a line, a key, a tensor.
    public var location: String?
    /// Why it is wrong: the values found, the values wanted.
    public var reason: String?
    /// What to do now.
    public var remedy: String?

    /// Creates an error; everything but the problem may be left out where it would only repeat it.
    public init(_ problem: String, in location: String? = nil, because reason: String? = nil, fix remedy: String? = nil)
    {
        self.problem = problem
        self.location = location
        self.reason = reason
        self.remedy = remedy
    }

    /// The error as printed for a person.
    public var description: String {
        var lines = [problem]
        if let location { lines.append("  in      \(location)") }
        if let reason { lines.append("  because \(reason)") }
        if let remedy { lines.append("  fix     \(remedy)") }
        return lines.joined(separator: "\n")
    }

    /// The same error, placed in `location` when it did not know its own place.
    package func at(_ location: String) -> MartletError {
        var copy = self
        if copy.location == nil {
            copy.location = location
        } else {
            copy.location = "\(location), \(copy.location ?? "")"
        }
        return copy
    }
}

/// The candidate closest to `word` by edit distance, if one is close enough to be a likely typo.
package func closestMatch(to word: String, among candidates: [String]) -> String? {
    let limit = max(2, word.count / 3)
    let scored = candidates.map { (editDistance(word.lowercased(), $0.lowercased()), $0) }
    guard let best = scored.min(by: { $0.0 < $1.0 }), best.0 <= limit else { return nil }
    return best.1
}

private func editDistance(_ a: String, _ b: String) -> Int {
    let a = Array(a.unicodeScalars), b = Array(b.unicodeScalars)
    var row = Array(0...b.count)
    for i in 0..<a.count {
        var previous = row[0]
        row[0] = i + 1
        for j in 0..<b.count {
            let current = row[j + 1]
            row[j + 1] = a[i] == b[j] ? previous : 1 + min(previous, current, row[j])
            previous = current
        }
    }
    return row[b.count]
}
