package import MartletCore

/// An example as a person reads it: its text in stretches of one kind.
package struct ExampleInspection: Sendable, Equatable {
    package struct Piece: Sendable, Equatable {
        package var text: String
        package var tokenCount: Int
        package var isTrained: Bool
    }

    /// "file, line N" of its row.
    package var location: String
    package var tokenCount: Int
    package var trainedCount: Int
    package var pieces: [Piece]
}

extension TokenizedDataset {
    /// The text of an example, special tokens and all, with what is trained told from what is not.
    package func inspect(_ index: Int) throws(MartletError) -> ExampleInspection {
        guard index >= 0, index < count else {
            throw MartletError(
                "there is no example \(index)", because: "the dataset has \(count)", fix: "give 0 to \(count - 1)")
        }
        let example = try example(index)
        var pieces: [ExampleInspection.Piece] = []
        var start = 0
        for i in example.tokens.indices {
            let isLast = i + 1 == example.tokens.count
            guard isLast || example.isTrained[i + 1] != example.isTrained[i] else { continue }
            let ids = Array(example.tokens[start...i])
            let text = encoder.decode(ids, skipsSpecialTokens: false)
            pieces.append(.init(text: text, tokenCount: ids.count, isTrained: example.isTrained[i]))
            start = i + 1
        }
        return ExampleInspection(
            location: location(of: index), tokenCount: example.tokens.count, trainedCount: example.trainedCount,
            pieces: pieces)
    }
}
