import MartletCPU
import MartletCore
import Testing

/// Every op against its naive formula, and its backward against central differences of that formula.
@Suite struct OpTests {
    static let seeds: [UInt64] = [1, 2, 3]

    @Test(arguments: seeds) func embedding(seed: UInt64) throws {
        for (t, v, h) in [(5, 3, 4), (1, 9, 1), (33, 7, 257)] {
            try judge(.embedding(seed: seed, t: t, v: v, h: h), by: Formulas.embedding)
        }
    }

    @Test(arguments: seeds) func rmsNorm(seed: UInt64) throws {
        for (t, h) in [(3, 7), (1, 3), (257, 33), (66, 257)] {
            try judge(.rmsNorm(seed: seed, t: t, h: h), by: Formulas.rmsNorm)
        }
    }

    @Test(arguments: seeds) func linear(seed: UInt64) throws {
        try judge(.linear(seed: seed, t: 7, i: 5, o: 6), by: Formulas.linear)
        try judge(.linear(seed: seed, t: 7, i: 5, o: 6, rank: 2), by: Formulas.linear)
        try judge(.linear(seed: seed, t: 7, i: 5, o: 6, rank: 3, dropout: 0.4, adds: true), by: Formulas.linear)
        try judge(.linear(seed: seed, t: 1, i: 1, o: 1, rank: 1, trainsWeight: true), by: Formulas.linear)
        try judge(
            .linear(seed: seed, t: 7, i: 5, o: 6, rank: 3, dropout: 0.4, trainsWeight: true).first, by: Formulas.linear)
    }

    @Test func linearOfOddSizes() throws {
        let big = OpCase.linear(
            seed: 4, t: 257, i: 33, o: 7, rank: 5, dropout: 0.25, adds: true, trainsWeight: true, firstRow: 1001)
        try judge(big, by: Formulas.linear)
        try judge(.linear(seed: 5, t: 33, i: 257, o: 65, rank: 4, trainsWeight: true), by: Formulas.linear)
        try judge(.linear(seed: 6, t: 3, i: 7, o: 1030, rank: 2), by: Formulas.linear)
    }

    @Test(arguments: seeds) func linearOfLayersThatShareTheirInput(seed: UInt64) throws {
        try judge(
            .sharedLinear(seed: seed, t: 7, i: 5, outputs: [6, 3, 4], rank: 2, adapted: [0, 2]),
            by: Formulas.sharedLinear)
        try judge(
            .sharedLinear(seed: seed, t: 7, i: 5, outputs: [6, 3, 4], rank: 2, adapted: [0, 2]).first,
            by: Formulas.sharedLinear)
    }

    @Test(arguments: seeds) func rotate(seed: UInt64) throws {
        for (t, n, d) in [(3, 2, 8), (1, 1, 2), (67, 3, 10), (7, 1, 34)] {
            try judge(.rotate(seed: seed, t: t, n: n, d: d, hasNorm: true), by: Formulas.rotate)
            try judge(.rotate(seed: seed, t: t, n: n, d: d, hasNorm: false), by: Formulas.rotate)
        }
    }

    @Test(arguments: seeds) func swiGLU(seed: UInt64) throws {
        for (t, f) in [(3, 5), (1, 1), (33, 7), (2, 257)] {
            try judge(.swiGLU(seed: seed, t: t, f: f), by: Formulas.swiGLU)
        }
    }

    @Test(arguments: seeds) func crossEntropy(seed: UInt64) throws {
        for (t, h, v) in [(5, 4, 6), (1, 1, 3), (33, 7, 257)] {
            let c = OpCase.crossEntropy(seed: seed, t: t, h: h, v: v)
            try judge(c, by: Formulas.crossEntropy)
            let results = try c.run(on: CPUBackend()).results
            #expect(results["lossOnly"] == results["loss"])
        }
    }

    @Test func crossEntropyInSeveralBlocks() throws {
        // Two of three rows have a target; a block holds 512 of them.
        try judge(.crossEntropy(seed: 7, t: 801, h: 3, v: 5), by: Formulas.crossEntropy, isLarge: true)
    }

    @Test(arguments: seeds) func adamW(seed: UInt64) throws {
        for (n, step) in [(1, 1), (33, 2), (257, 1000)] {
            try judge(.adamW(seed: seed, n: n, step: step), by: Formulas.adamW)
        }
    }

    @Test(arguments: seeds) func route(seed: UInt64) throws {
        for (t, e, k) in [(5, 4, 2), (1, 1, 1), (33, 7, 7), (257, 33, 3)] {
            for normalizes in [true, false] {
                let c = OpCase.route(seed: seed, t: t, e: e, k: k, normalizes: normalizes, hasAuxiliary: normalizes)
                try judge(c, by: Formulas.route)
            }
        }
    }
}
