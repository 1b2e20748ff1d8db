import MartletCore
import Testing

@testable import Martlet

@Suite struct SamplerTests {
    private let logits: [Float] = [0, 2, 1, 3, -1]

    @Test func greedyTakesTheFirstOfTheLargest() throws {
        var sampler = try Sampler(SamplingSettings())
        #expect(try sampler.next(logits) == 3)
        #expect(try sampler.next([1, 5, 5, 5]) == 1)
    }

    @Test func theSameSeedDrawsTheSameTokens() throws {
        func draw(_ seed: Int) throws -> [Int32] {
            var sampler = try Sampler(SamplingSettings(temperature: 1, seed: seed))
            return try (0..<64).map { _ in try sampler.next(logits) }
        }
        #expect(try draw(7) == draw(7))
        #expect(try draw(7) != draw(8))
    }

    @Test func frequenciesAreTheSoftmax() throws {
        var sampler = try Sampler(SamplingSettings(temperature: 2, seed: 1))
        var counts = [Int](repeating: 0, count: 5)
        let draws = 40_000
        for _ in 0..<draws { counts[Int(try sampler.next(logits))] += 1 }
        let weights = logits.map { (Double($0) / 2).exponential }
        let total = weights.reduce(0, +)
        for (count, weight) in zip(counts, weights) {
            let p = weight / total
            // Five standard deviations of a binomial share.
            #expect((Double(count) / Double(draws) - p).magnitude < 5 * (p * (1 - p) / Double(draws)).squareRoot())
        }
    }

    @Test func topKAndTopPLeaveOutTheTail() throws {
        func drawn(_ settings: SamplingSettings) throws -> Set<Int32> {
            var sampler = try Sampler(settings)
            return try Set((0..<2000).map { _ in try sampler.next(logits) })
        }
        #expect(try drawn(SamplingSettings(temperature: 3, topK: 2)) == [1, 3])
        #expect(try drawn(SamplingSettings(temperature: 1, topK: 1)) == [3])
        // Probabilities at temperature 1: 0.636 (3), 0.234 (1), 0.086 (2), ...: 0.8 needs two tokens, 0.6 one.
        #expect(try drawn(SamplingSettings(temperature: 1, topP: 0.8)) == [1, 3])
        #expect(try drawn(SamplingSettings(temperature: 1, topP: 0.6)) == [3])
        #expect(try drawn(SamplingSettings(temperature: 3)) == [0, 1, 2, 3, 4])
    }

    @Test func badSettingsAndBadLogitsAreErrors() throws {
        for settings in [
            SamplingSettings(temperature: -1), SamplingSettings(temperature: .nan), SamplingSettings(topK: -1),
            SamplingSettings(topP: 0), SamplingSettings(topP: 1.5),
        ] {
            let error = #expect(throws: MartletError.self) { try Sampler(settings) }
            #expect(error?.remedy != nil)
        }
        var sampler = try Sampler(SamplingSettings())
        let error = #expect(throws: MartletError.self) { try sampler.next([1, .nan, 2]) }
        #expect(error?.location == "the logit of token 1")
    }
}
