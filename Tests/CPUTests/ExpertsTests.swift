import MartletCore
import Testing

@Suite struct ExpertsTests {
    @Test(arguments: OpTests.seeds) func small(seed: UInt64) throws {
        try judge(.experts(seed: seed, t: 5, h: 4, f: 3, e: 4, k: 2), by: Formulas.experts)
        try judge(.experts(seed: seed, t: 5, h: 4, f: 3, e: 4, k: 2, rank: 2), by: Formulas.experts)
        try judge(
            .experts(
                seed: seed, t: 5, h: 4, f: 3, e: 4, k: 2, rank: 2, dropout: 0.4, trainsWeights: true, firstRow: 77),
            by: Formulas.experts)
        try judge(
            .experts(seed: seed, t: 1, h: 1, f: 1, e: 1, k: 1, rank: 1, trainsWeights: true), by: Formulas.experts)
        try judge(
            .experts(seed: seed, t: 5, h: 4, f: 3, e: 7, k: 2, rank: 2, trainsWeights: true, crowd: .together).first,
            by: Formulas.experts)
    }

    @Test func oddSizesWithEmptyExperts() throws {
        try judge(
            .experts(seed: 4, t: 33, h: 33, f: 7, e: 9, k: 3, rank: 5, dropout: 0.3, trainsWeights: true, firstRow: 5),
            by: Formulas.experts)
        try judge(.experts(seed: 5, t: 7, h: 257, f: 33, e: 3, k: 1, rank: 2), by: Formulas.experts)
    }

    @Test func allTokensTogether() throws {
        try judge(
            .experts(
                seed: 6, t: 300, h: 9, f: 7, e: 5, k: 2, rank: 2, dropout: 0.2, trainsWeights: true, crowd: .together),
            by: Formulas.experts, isLarge: true)
    }

    /// 4,500 routed rows: a second wave, which begins inside an expert.
    @Test func severalWaves() throws {
        try judge(
            .experts(seed: 7, t: 1500, h: 3, f: 2, e: 4, k: 3, rank: 1, dropout: 0.1, trainsWeights: true),
            by: Formulas.experts, isLarge: true)
    }
}
