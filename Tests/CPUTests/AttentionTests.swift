import MartletCore
import Testing

@Suite struct AttentionTests {
    @Test(arguments: OpTests.seeds) func oneSequence(seed: UInt64) throws {
        for (t, q, g, d) in [(5, 2, 1, 4), (1, 1, 1, 1), (7, 6, 3, 3), (4, 8, 1, 2)] {
            let span = AttentionSpan(queryStart: 0, queryCount: t, keyStart: 0, keyCount: t)
            let c = OpCase.attention(seed: seed, t: t, u: t, q: q, g: g, d: d, spans: [span])
            try judge(c, by: Formulas.attention)
        }
    }

    @Test(arguments: OpTests.seeds) func laterTileOfASequenceBetweenOthers(seed: UInt64) throws {
        let spans = [
            AttentionSpan(queryStart: 0, queryCount: 3, keyStart: 0, keyCount: 9),
            AttentionSpan(queryStart: 3, queryCount: 1, keyStart: 9, keyCount: 1),
            AttentionSpan(queryStart: 4, queryCount: 2, keyStart: 10, keyCount: 2),
        ]
        try judge(.attention(seed: seed, t: 6, u: 12, q: 4, g: 2, d: 3, spans: spans), by: Formulas.attention)
    }

    /// More than one block of queries and more than one tile of keys, with ragged ends.
    @Test func severalTiles() throws {
        let spans = [
            AttentionSpan(queryStart: 0, queryCount: 270, keyStart: 0, keyCount: 530),
            AttentionSpan(queryStart: 270, queryCount: 33, keyStart: 530, keyCount: 33),
        ]
        let c = OpCase.attention(seed: 9, t: 303, u: 563, q: 4, g: 2, d: 5, spans: spans)
        try judge(c, by: Formulas.attention, isLarge: true)
    }
}
