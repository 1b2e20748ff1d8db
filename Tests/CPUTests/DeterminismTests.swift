import MartletCPU
import MartletCore
import Testing

/// The same bytes on one, two and three threads, and again; with every arithmetic.
@Suite struct DeterminismTests {
    private static let cases: [OpCase] = [
        .embedding(seed: 1, t: 300, v: 20, h: 300), .rmsNorm(seed: 1, t: 300, h: 300),
        .linear(seed: 1, t: 600, i: 300, o: 700, rank: 8, dropout: 0.1, adds: true, trainsWeight: true),
        .rotate(seed: 1, t: 300, n: 4, d: 32, hasNorm: true),
        .attention(
            seed: 1, t: 300, u: 500, q: 8, g: 2, d: 32,
            spans: [
                AttentionSpan(queryStart: 0, queryCount: 200, keyStart: 0, keyCount: 400),
                AttentionSpan(queryStart: 200, queryCount: 100, keyStart: 400, keyCount: 100),
            ]),
        .route(seed: 1, t: 300, e: 33, k: 5, normalizes: true, hasAuxiliary: true),
        .experts(seed: 1, t: 600, h: 300, f: 96, e: 8, k: 3, rank: 8, dropout: 0.1, trainsWeights: true),
        .experts(seed: 1, t: 600, h: 300, f: 96, e: 8, k: 1, rank: 8, crowd: .together),
        .swiGLU(seed: 1, t: 300, f: 257), .crossEntropy(seed: 1, t: 700, h: 100, v: 3000),
        .adamW(seed: 1, n: 200_000, step: 3), .adamW8Bit(seed: 1, n: 200_000, step: 3),
    ]

    @Test(arguments: Arithmetic.available) func threadsDoNotChangeBytes(_ arithmetic: Arithmetic) throws {
        for c in DeterminismTests.cases {
            let one = try c.run(on: CPUBackend(threads: 1, arithmetic: arithmetic))
            #expect(one.isContained, "\(c.name)")
            for threads in [2, 3] {
                let more = try c.run(on: CPUBackend(threads: threads, arithmetic: arithmetic))
                for (name, values) in one.results {
                    #expect(
                        values.map(\.bitPattern) == more.results[name]?.map(\.bitPattern),
                        "\(c.name): \(name) on \(threads) threads")
                    #expect(values.allSatisfy { $0.isFinite }, "\(c.name): \(name)")
                }
            }
        }
    }
}
