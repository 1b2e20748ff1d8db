extension Parity {
    /// Every op: sizes that divide nothing, sizes that vector units and tensor cores like, one row, and none at all.
    package static let cases: [OpCase] = plain + projections + attention + routed + first

    /// The cases whose names begin with the words of one of these, which may be an op alone; all if none is given.
    package static func cases(named names: [String]) throws(MartletError) -> [OpCase] {
        let known = Set(cases.map(\.op)).sorted()
        for name in names where !cases.contains(where: { $0.isNamed(name) }) {
            throw MartletError(
                "there is no op or case '\(name)'", in: "--only",
                because: known.contains(String(name.prefix { $0 != " " }))
                    ? "no case's name begins so" : "the ops are \(known.joined(separator: ", "))",
                fix: closestMatch(to: name, among: known).map { "did you mean '\($0)'?" } ?? "name one of them")
        }
        return names.isEmpty ? cases : cases.filter { one in names.contains { one.isNamed($0) } }
    }

    private static let plain: [OpCase] = [
        .elementwise(seed: 1, n: 1), .elementwise(seed: 2, n: 257), .elementwise(seed: 3, n: 70_001),
        .embedding(seed: 1, t: 33, v: 7, h: 257), .embedding(seed: 2, t: 0, v: 3, h: 8),
        .embedding(seed: 3, t: 257, v: 61, h: 128),
        .rmsNorm(seed: 1, t: 7, h: 33), .rmsNorm(seed: 2, t: 257, h: 257), .rmsNorm(seed: 3, t: 0, h: 64),
        .rmsNorm(seed: 4, t: 65, h: 2048),
        .rotate(seed: 1, t: 7, n: 3, d: 10, hasNorm: true), .rotate(seed: 2, t: 33, n: 1, d: 34, hasNorm: false),
        .rotate(seed: 3, t: 257, n: 4, d: 128, hasNorm: true), .rotate(seed: 4, t: 0, n: 2, d: 64, hasNorm: true),
        .swiGLU(seed: 1, t: 7, f: 33), .swiGLU(seed: 2, t: 1, f: 257), .swiGLU(seed: 3, t: 257, f: 128),
        .swiGLU(seed: 4, t: 0, f: 8),
        .crossEntropy(seed: 1, t: 1, h: 5, v: 3), .crossEntropy(seed: 2, t: 33, h: 7, v: 257),
        .crossEntropy(seed: 3, t: 801, h: 64, v: 1031), .crossEntropy(seed: 4, t: 0, h: 8, v: 16),
        .crossEntropy(seed: 5, t: 257, h: 128, v: 2048),
        .adamW(seed: 1, n: 1, step: 1), .adamW(seed: 2, n: 257, step: 2), .adamW(seed: 3, n: 70_001, step: 1000),
        .adamW8Bit(seed: 1, n: 1, step: 1), .adamW8Bit(seed: 2, n: 513, step: 2),
        .adamW8Bit(seed: 3, n: 70_001, step: 1000),
        .adamW(seed: 4, n: 257, step: 2, inHalves: true), .adamW(seed: 5, n: 70_001, step: 3, inHalves: true),
        .adamW8Bit(seed: 4, n: 513, step: 2, inHalves: true), .adamW8Bit(seed: 5, n: 70_001, step: 3, inHalves: true),
    ]

    private static let projections: [OpCase] = [
        .linear(seed: 1, t: 1, i: 1, o: 1, rank: 1, trainsWeight: true), .linear(seed: 2, t: 0, i: 8, o: 16, rank: 4),
        .linear(seed: 3, t: 7, i: 33, o: 257), .linear(seed: 4, t: 33, i: 257, o: 65, rank: 5, trainsWeight: true),
        .linear(seed: 5, t: 257, i: 33, o: 7, rank: 3, dropout: 0.25, adds: true, firstRow: 1001),
        .linear(seed: 6, t: 257, i: 256, o: 384, rank: 16), .linear(seed: 7, t: 257, i: 256, o: 128, adds: true),
        .linear(
            seed: 8, t: 128, i: 128, o: 256, rank: 8, dropout: 0.1, adds: true, trainsWeight: true, firstRow: 4096),
        .linear(seed: 9, t: 33, i: 72, o: 200, rank: 16, adds: true),
        .linear(seed: 10, t: 257, i: 136, o: 64, rank: 64),
        // So many columns that Hopper takes its wide tiles (ProjectionTile): forward, and backward.
        .linear(seed: 11, t: 130, i: 72, o: 8704, rank: 16, adds: true),
        .linear(seed: 12, t: 130, i: 8704, o: 72, rank: 16, adds: true),
        .sharedLinear(seed: 1, t: 257, i: 128, outputs: [256, 64, 72], rank: 16, adapted: [0, 1, 2]),
        .sharedLinear(seed: 2, t: 65, i: 200, outputs: [136, 64], rank: 32, adapted: [1]),
        .sharedLinear(seed: 3, t: 7, i: 33, outputs: [5, 9, 3], rank: 3, adapted: [0, 2]),
        .sharedLinear(seed: 4, t: 0, i: 64, outputs: [64, 8], rank: 16, adapted: [0]),
        // So many rows that Hopper cuts skinny products as it does in long steps (LowShape).
        .sharedLinear(seed: 5, t: 2177, i: 72, outputs: [136, 64], rank: 16, adapted: [0, 1]),
    ]

    /// Gradients overwritten: no rows, experts without any, adapters with dropout and without, whole weights.
    private static let first: [OpCase] = [
        .linear(seed: 2, t: 0, i: 8, o: 16, rank: 4).first,
        .linear(seed: 4, t: 33, i: 257, o: 65, rank: 5, trainsWeight: true).first,
        .linear(seed: 5, t: 257, i: 33, o: 7, rank: 3, dropout: 0.25, adds: true, firstRow: 1001).first,
        .linear(seed: 9, t: 33, i: 72, o: 200, rank: 16, adds: true).first,
        .sharedLinear(seed: 1, t: 257, i: 128, outputs: [256, 64, 72], rank: 16, adapted: [0, 1, 2]).first,
        .experts(seed: 2, t: 0, h: 64, f: 64, e: 4, k: 2, rank: 4).first,
        .experts(
            seed: 3, t: 33, h: 33, f: 7, e: 9, k: 3, rank: 5, dropout: 0.3, trainsWeights: true, firstRow: 5
        ).first,
        .experts(seed: 8, t: 257, h: 256, f: 128, e: 16, k: 4, rank: 16).first,
        .experts(seed: 10, t: 333, h: 200, f: 136, e: 8, k: 2, rank: 16, crowd: .together).first,
        .experts(seed: 11, t: 257, h: 128, f: 64, e: 8, k: 2, rank: 5).first,
        .experts(seed: 13, t: 193, h: 72, f: 256, e: 9, k: 2, rank: 16).first,
    ]

    /// A sequence that began in an earlier tile, a short one and a whole one.
    private static func spans(_ long: Int, before: Int, _ whole: Int) -> [AttentionSpan] {
        [
            AttentionSpan(queryStart: 0, queryCount: long, keyStart: 0, keyCount: before + long),
            AttentionSpan(queryStart: long, queryCount: 1, keyStart: before + long, keyCount: 1),
            AttentionSpan(queryStart: long + 1, queryCount: whole, keyStart: before + long + 1, keyCount: whole),
        ]
    }

    private static func oneSpan(_ count: Int) -> [AttentionSpan] {
        [AttentionSpan(queryStart: 0, queryCount: count, keyStart: 0, keyCount: count)]
    }

    /// Sequences that all began earlier, which a tile of a step never has more than one of.
    private static let lateSpans = [
        AttentionSpan(queryStart: 0, queryCount: 100, keyStart: 0, keyCount: 333),
        AttentionSpan(queryStart: 100, queryCount: 1, keyStart: 333, keyCount: 65),
        AttentionSpan(queryStart: 101, queryCount: 57, keyStart: 398, keyCount: 57),
        AttentionSpan(queryStart: 158, queryCount: 130, keyStart: 455, keyCount: 259),
    ]

    /// Forward and backward, with earlier keys and without; of those more than a call may take.
    private static let attention: [OpCase] = [
        .attention(seed: 1, t: 1, u: 1, q: 1, g: 1, d: 2, spans: Array(spans(1, before: 0, 0).prefix(1))),
        .attention(seed: 2, t: 0, u: 0, q: 2, g: 1, d: 64, spans: []),
        .attention(seed: 3, t: 41, u: 74, q: 6, g: 2, d: 10, spans: spans(7, before: 33, 33)),
        .attention(seed: 4, t: 258, u: 321, q: 8, g: 2, d: 64, spans: spans(200, before: 63, 57)),
        .attention(
            seed: 6, t: 256, u: 512, q: 4, g: 2, d: 64,
            spans: [AttentionSpan(queryStart: 0, queryCount: 256, keyStart: 0, keyCount: 512)]),
        .attention(seed: 7, t: 512, u: 512, q: 8, g: 2, d: 128, spans: oneSpan(512)),
        .attention(seed: 5, t: 194, u: 450, q: 4, g: 4, d: 128, spans: spans(128, before: 256, 65)),
        .attention(seed: 8, t: 288, u: 714, q: 8, g: 2, d: 64, spans: lateSpans),
        .attention(seed: 10, t: 288, u: 714, q: 8, g: 1, d: 128, spans: lateSpans),
        .attention(seed: 9, t: 140, u: 16740, q: 2, g: 1, d: 64, spans: spans(97, before: 16600, 42)),
        .attention(seed: 11, t: 193, u: 193, q: 2, g: 1, d: 128, spans: oneSpan(193)),
        .attention(seed: 12, t: 193, u: 193, q: 2, g: 1, d: 64, spans: oneSpan(193)),
    ]

    private static let routed: [OpCase] = [
        .route(seed: 1, t: 1, e: 1, k: 1, normalizes: true), .route(seed: 2, t: 33, e: 7, k: 7, normalizes: false),
        .route(seed: 3, t: 257, e: 33, k: 3, normalizes: true, hasAuxiliary: true),
        .route(seed: 4, t: 257, e: 128, k: 8, normalizes: true), .route(seed: 5, t: 0, e: 8, k: 2, normalizes: true),
        .experts(seed: 1, t: 1, h: 1, f: 1, e: 1, k: 1, rank: 1, trainsWeights: true),
        .experts(seed: 2, t: 0, h: 64, f: 64, e: 4, k: 2, rank: 4),
        .experts(
            seed: 3, t: 33, h: 33, f: 7, e: 9, k: 3, rank: 5, dropout: 0.3, trainsWeights: true, firstRow: 5),
        .experts(seed: 4, t: 7, h: 257, f: 33, e: 3, k: 1, rank: 2),
        .experts(seed: 5, t: 300, h: 9, f: 7, e: 5, k: 2, rank: 2, dropout: 0.2, crowd: .together),
        .experts(seed: 6, t: 257, h: 128, f: 64, e: 8, k: 2),
        .experts(seed: 7, t: 257, h: 256, f: 128, e: 16, k: 4, rank: 16, dropout: 0.1, firstRow: 4096),
        .experts(seed: 8, t: 257, h: 256, f: 128, e: 16, k: 4, rank: 16),
        .experts(seed: 9, t: 1, h: 128, f: 64, e: 8, k: 2, rank: 32),
        .experts(seed: 10, t: 333, h: 200, f: 136, e: 8, k: 2, rank: 16, crowd: .together),
        .experts(seed: 11, t: 257, h: 128, f: 64, e: 8, k: 2, rank: 5),
        .experts(seed: 12, t: 65, h: 72, f: 40, e: 6, k: 3, rank: 24),
        .experts(seed: 13, t: 193, h: 72, f: 256, e: 9, k: 2, rank: 16),
        .experts(seed: 14, t: 301, h: 64, f: 768, e: 4, k: 2, rank: 16, crowd: .together),
    ]
}
