/// The tokens of one optimizer step: sequences laid end to end, with no attention across their borders.
///
/// Data makes it, the model consumes it. Row `t` predicts `targets[t]`, already shifted; -1 means "no loss here".
package struct PackedStep: Sendable, Equatable {
    /// Token ids, one a row.
    package var tokens: [Int32]
    /// The id that row `t` should predict (the next token of its sequence), or -1 for no loss.
    package var targets: [Int32]
    /// Position inside the sequence, for RoPE.
    package var positions: [Int32]
    /// First row of each sequence, and the row count at the end: `sequenceCount + 1` ascending values.
    package var offsets: [Int]

    package init(tokens: [Int32] = [], targets: [Int32] = [], positions: [Int32] = [], offsets: [Int] = [0]) {
        self.tokens = tokens
        self.targets = targets
        self.positions = positions
        self.offsets = offsets
    }

    package var tokenCount: Int { tokens.count }
    package var sequenceCount: Int { offsets.count - 1 }
    package var targetCount: Int { targets.reduce(0) { $0 + ($1 >= 0 ? 1 : 0) } }

    /// Appends one sequence; `isTrained[i]` says whether *predicting* token `i` counts in the loss.
    package mutating func append(_ sequence: [Int32], isTrained: [Bool]) {
        precondition(sequence.count == isTrained.count)
        tokens += sequence
        positions += (0..<Int32(sequence.count))
        for i in sequence.indices {
            let next = i + 1
            targets.append(next < sequence.count && isTrained[next] ? sequence[next] : -1)
        }
        offsets.append(tokens.count)
    }
}
