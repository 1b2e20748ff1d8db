import MartletCPU
import MartletCore
import Testing

/// The suite that a user's machine is examined with.
@Suite struct ParityTests {
    @Test(arguments: Arithmetic.available) func fastLoopsComputeWhatPlainOnesDo(_ arithmetic: Arithmetic) throws {
        let results = try Parity.compare(CPUBackend(arithmetic: .plain), with: CPUBackend(arithmetic: arithmetic))
        for result in results where !result.isSound { Issue.record("\(result)") }
        let ops = Set(results.compactMap { $0.op.split(separator: " ").first })
        let wanted: Set<Substring> = [
            "elementwise", "embedding", "rmsNorm", "linear", "rotate", "attention", "route", "experts", "swiGLU",
            "crossEntropy", "adamW",
        ]
        #expect(ops == wanted)
    }

    @Test func threadsChangeNothing() throws {
        let results = try Parity.compare(CPUBackend(threads: 3), with: CPUBackend(threads: 1), tolerance: 0)
        for result in results where !result.isSound { Issue.record("\(result)") }
    }

    /// Another seed's numbers stand for a backend that computes something else.
    @Test func whatIsWrongIsFound() throws {
        for (c, other) in [
            (OpCase.rmsNorm(seed: 1, t: 7, h: 9), OpCase.rmsNorm(seed: 2, t: 7, h: 9)),
            (.route(seed: 1, t: 7, e: 5, k: 2, normalizes: true), .route(seed: 2, t: 7, e: 5, k: 2, normalizes: true)),
        ] {
            let wanted = try c.run(on: CPUBackend()).results, found = try other.run(on: CPUBackend()).results
            for (name, values) in wanted where name != "offset" {
                #expect(Parity.error(of: found[name, default: []], values) > 0.1, "\(name)")
            }
        }
    }

    @Test func errorsAreRelativeToTheLargestAndNotANumberIsNoNumber() {
        #expect(Parity.error(of: [1, 4.5, 0], [1, 4, 0]) == 0.125)
        #expect(Parity.error(of: [-.infinity, .nan], [-.infinity, .nan]) == 0)
        for wrong in [[Float.nan, 4], [1, .infinity], [1], [0, 0]] {
            #expect(Parity.error(of: wrong, [1, 4]) >= 1)
        }
        #expect(Parity.error(of: [1e-9], [0]) == .infinity)
        #expect(Parity.error(of: [], []) == 0)
    }

    @Test func inputsAreRoundedWhereOneOfTheTwoIsCoarse() {
        let exact = OpCase.swiGLU(seed: 1, t: 3, f: 5), rounded = exact.inBFloat16
        #expect(rounded.inputs != exact.inputs && rounded.inBFloat16.inputs == rounded.inputs)
        for (name, values) in rounded.inputs {
            #expect(values.allSatisfy { $0.bitPattern & 0xFFFF == 0 }, "\(name)")
        }
        #expect(Parity.tolerance(of: .float32) == 1e-4 && Parity.tolerance(of: .bfloat16) == 3e-2)
    }
}
