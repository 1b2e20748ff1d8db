package import MartletCore

/// Some examples of a dataset: all, or one side of a split.
package struct ExampleSet: Sendable {
    package let dataset: TokenizedDataset
    /// The examples in dataset order; nil is all.
    private let indices: [Int32]?

    package init(all dataset: TokenizedDataset) {
        self.dataset = dataset
        indices = nil
    }

    private init(_ dataset: TokenizedDataset, _ indices: [Int32]) {
        self.dataset = dataset
        self.indices = indices
    }

    package var count: Int { indices?.count ?? dataset.count }

    /// The index in the dataset of example `index` of this set.
    package func datasetIndex(_ index: Int) -> Int { indices.map { Int($0[index]) } ?? index }

    package func length(_ index: Int) -> Int { dataset.length(datasetIndex(index)) }

    package func example(_ index: Int) throws(MartletError) -> TokenizedExample {
        try dataset.example(datasetIndex(index))
    }

    /// Tells this set from others.
    package var fingerprint: String {
        var fingerprint = Fingerprint()
        fingerprint.add(dataset.fingerprint)
        if let indices { fingerprint.add(indices.lazy.map(UInt32.init(bitPattern:))) }
        return fingerprint.text
    }

    /// Sets `fraction` of the examples (rounded, at least one) aside for evaluation. Which ones depends on the seed and
    /// the number of examples only.
    package func split(
        evaluationFraction fraction: Double, seed: UInt64
    ) throws(MartletError) -> (
        train: ExampleSet, evaluation: ExampleSet
    ) {
        guard fraction > 0, fraction < 1 else {
            throw MartletError(
                "the evaluation fraction must lie between 0 and 1", because: "it is \(fraction)",
                fix: "0.05 sets a twentieth of the examples aside")
        }
        guard count >= 2 else {
            throw MartletError(
                "the data cannot be split", because: "there is only \(count) example",
                fix: "give more data, or a file of its own for evaluation")
        }
        let wanted = min(max(1, Int((Double(count) * fraction).rounded())), count - 1)
        let permutation = IndexPermutation(count: count, seed: seed, stream: ShuffleStream.split)
        let chosen = (0..<wanted).map { permutation[$0] }.sorted()
        var evaluation: [Int32] = [], train: [Int32] = []
        var next = 0
        for index in 0..<count {
            let isChosen = next < chosen.count && chosen[next] == index
            if isChosen { next += 1 }
            let value = Int32(datasetIndex(index))
            if isChosen { evaluation.append(value) } else { train.append(value) }
        }
        return (ExampleSet(dataset, train), ExampleSet(dataset, evaluation))
    }
}

/// Streams of the seed, so that each use of it draws its own numbers. Epoch e shuffles with stream e.
enum ShuffleStream {
    static let split: UInt64 = 1 << 62
    static let packing: UInt64 = 1 << 62 + 1
}
