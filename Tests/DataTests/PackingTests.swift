import MartletCore
import MartletData
import Testing

@Suite struct PackingTests {
    let scratch = Scratch()

    /// A dataset of texts, each of one repeated letter pair that tells it apart; `maxLength` 64.
    func dataset(_ count: Int, seed: UInt64 = 1, budget: Int = 1 << 20) throws -> TokenizedDataset {
        var random = RandomStream(seed: seed)
        let rows = (0..<count).map { i in
            "{\"text\":\"\(i):\(String(repeating: "x", count: Int.random(in: 0..<50, using: &random)))\"}"
        }
        return try load(scratch.file("p\(count).jsonl", rows.joined(separator: "\n")), maxLength: 64) {
            $0.memoryBudget = budget
        }
    }

    @Test func bestFitOnKnownCases() {
        #expect(bestFitDecreasing(lengths: [2, 3, 4, 5, 6], capacity: 10) == [[4, 2], [3, 1, 0]])
        #expect(bestFitDecreasing(lengths: [], capacity: 10) == [])
        #expect(bestFitDecreasing(lengths: [10, 10], capacity: 10) == [[0], [1]])
        // Best fit puts the 2 into the bin with room 2, not the first bin with room 3.
        #expect(bestFitDecreasing(lengths: [7, 8, 2, 3], capacity: 10) == [[1, 2], [0, 3]])
        #expect(bestFitDecreasing(lengths: Array(repeating: 1, count: 130), capacity: 64).map(\.count) == [64, 64, 2])
    }

    @Test(arguments: [1, 63, 64, 65, 1000])
    func bestFitPlacesEachItemOnceInsideTheCapacity(capacity: Int) {
        var random = RandomStream(seed: UInt64(capacity))
        let lengths = (0..<2000).map { _ in Int.random(in: 1...capacity, using: &random) }
        let bins = bestFitDecreasing(lengths: lengths, capacity: capacity)
        #expect(bins.flatMap { $0 }.sorted() == Array(lengths.indices))
        #expect(bins.allSatisfy { $0.reduce(0) { $0 + lengths[$1] } <= capacity })
        // At most 11/9 of the optimum, plus one (Johnson 1973); the optimum is at least the sum over the capacity, and
        // the number of items over half of it.
        let least = max(ceilDiv(lengths.reduce(0, +), capacity), lengths.count { 2 * $0 > capacity })
        #expect(9 * bins.count <= 11 * least + 9)
    }

    @Test func permutationsAreBijectiveAndUniform() {
        for count in [1, 2, 3, 5, 16, 17, 1000] {
            for stream in 0..<3 as Range<UInt64> {
                let permutation = IndexPermutation(count: count, seed: 5, stream: stream)
                #expect((0..<count).map { permutation[$0] }.sorted() == Array(0..<count))
            }
        }
        // All 24 orders of four items, 2400 draws: chi-square with 23 degrees of freedom; 60 is beyond one in 10^4.
        var counts: [[Int]: Int] = [:]
        for stream in 0..<2400 as Range<UInt64> {
            let permutation = IndexPermutation(count: 4, seed: 11, stream: stream)
            counts[(0..<4).map { permutation[$0] }, default: 0] += 1
        }
        #expect(counts.count == 24)
        #expect(counts.values.reduce(0) { $0 + ($1 - 100) * ($1 - 100) / 100 } < 60)
    }

    @Test(arguments: [true, false], [true, false])
    func anEpochHoldsEveryTokenOnce(packs: Bool, shuffles: Bool) throws {
        let dataset = try dataset(500)
        let settings = StepSettings(batchSize: 2, gradientAccumulation: 3, packs: packs, shuffles: shuffles, seed: 3)
        let loader = try StepLoader(examples: ExampleSet(all: dataset), settings: settings)
        let examples = try (0..<dataset.count).map { try dataset.example($0).tokens }
        #expect(loader.stepsPerEpoch == ceilDiv(loader.rowCount, 6))
        for epoch in 0..<2 {
            var seen: [[Int32]] = []
            for index in 0..<loader.stepsPerEpoch {
                let step = try loader.step(epoch * loader.stepsPerEpoch + index)
                seen += sequences(step)
                #expect(step.tokenCount <= 6 * 64)
            }
            #expect(Set(seen) == Set(examples) && seen.count == examples.count)
            if !packs && !shuffles { #expect(seen == examples) }
        }
        if packs {
            #expect(loader.fill > 0.95 && loader.rowCount < 500)
        } else {
            #expect(loader.rowCount == 500)
        }
    }

    @Test func stepsAreWellFormed() throws {
        let dataset = try dataset(100)
        let loader = try StepLoader(examples: ExampleSet(all: dataset), settings: StepSettings(batchSize: 4))
        let step = try loader.step(0)
        #expect(step.sequenceCount > 4)
        for s in 0..<step.sequenceCount {
            let range = step.offsets[s]..<step.offsets[s + 1]
            #expect(Array(step.positions[range]) == range.map { Int32($0 - range.lowerBound) })
            #expect(step.targets[range.upperBound - 1] == -1)
            #expect(Array(step.targets[range].dropLast()) == Array(step.tokens[range].dropFirst()))
        }
    }

    @Test func aStepDependsOnItsIndexOnly() throws {
        let settings = StepSettings(batchSize: 3, seed: 9)
        let first = try StepLoader(examples: ExampleSet(all: try dataset(300)), settings: settings)
        let total = 2 * first.stepsPerEpoch
        let steps = try (0..<total).map { try first.step($0) }
        // A budget of nothing puts the tokens into a file; the steps are the same.
        let spooled = try dataset(300, budget: 0)
        #expect(!spooled.isInMemory)
        let second = try StepLoader(examples: ExampleSet(all: spooled), settings: settings)
        #expect(second.fingerprint == first.fingerprint)
        for index in (0..<total).reversed() { #expect(try second.step(index) == steps[index]) }
        #expect(steps[0] != steps[first.stepsPerEpoch])
    }

    @Test func fingerprintsTellDataAndSettingsApart() throws {
        let all = ExampleSet(all: try dataset(50))
        let base = StepSettings(batchSize: 2, gradientAccumulation: 2, seed: 1)
        var others = [base, base, base, base]
        others[0].seed = 2
        others[1].packs = false
        others[2].shuffles = false
        others[3].batchSize = 3
        var seen = Set(try others.map { try StepLoader(examples: all, settings: $0).fingerprint })
        seen.insert(try StepLoader(examples: all, settings: base).fingerprint)
        seen.insert(try StepLoader(examples: ExampleSet(all: try dataset(50, seed: 2)), settings: base).fingerprint)
        seen.insert(
            try StepLoader(examples: try all.split(evaluationFraction: 0.1, seed: 1).train, settings: base).fingerprint)
        #expect(seen.count == 7)
        var same = base
        (same.batchSize, same.gradientAccumulation) = (4, 1)
        #expect(
            try StepLoader(examples: all, settings: same).fingerprint
                == StepLoader(examples: all, settings: base).fingerprint)
        let chat = #"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#
        let path = scratch.file("c.jsonl", chat)
        #expect(try load(path).fingerprint != load(path) { $0.loss = .all }.fingerprint)
    }

    @Test func splitsAreDisjointWholeAndSeeded() throws {
        let all = ExampleSet(all: try dataset(200))
        let (train, evaluation) = try all.split(evaluationFraction: 0.1, seed: 4)
        #expect(train.count == 180 && evaluation.count == 20)
        let indices = (0..<180).map(train.datasetIndex) + (0..<20).map(evaluation.datasetIndex)
        #expect(indices.sorted() == Array(0..<200))
        #expect(try all.split(evaluationFraction: 0.1, seed: 4).train.fingerprint == train.fingerprint)
        #expect(try all.split(evaluationFraction: 0.1, seed: 5).train.fingerprint != train.fingerprint)
        for fraction in [0, 1, -0.5, .nan] {
            #expect(throws: MartletError.self) { try all.split(evaluationFraction: fraction, seed: 0) }
        }
        #expect(throws: MartletError.self) {
            try ExampleSet(all: try dataset(1)).split(evaluationFraction: 0.5, seed: 0)
        }
    }

    @Test func nonsenseSettingsAreErrors() throws {
        let all = ExampleSet(all: try dataset(3))
        for (batch, accumulation) in [(0, 1), (1, 0), (-1, -1), (Int.max, 2)] {
            let settings = StepSettings(batchSize: batch, gradientAccumulation: accumulation)
            #expect(throws: MartletError.self) { try StepLoader(examples: all, settings: settings) }
        }
        let loader = try StepLoader(examples: all, settings: StepSettings())
        #expect(throws: MartletError.self) { try loader.step(-1) }
        #expect(throws: MartletError.self) { try all.dataset.inspect(3) }
    }
}
