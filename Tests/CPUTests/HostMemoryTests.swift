import MartletCPU
import MartletCore
import Testing

@Suite struct HostMemoryTests {
    @Test func tooMuchMemoryIsAnErrorWithARemedy() {
        let error = #expect(throws: MartletError.self) { try CPUBackend().makeArena(byteCount: 1 << 50) }
        #expect(error?.remedy != nil && error?.reason?.contains("1024 TiB") == true)
    }

    @Test func measuringCarvesWhatTheRunCarves() throws {
        var shapes = ScratchShapes()
        (shapes.tokens, shapes.hidden, shapes.vocabulary, shapes.widest, shapes.rank) = (100, 64, 1000, 128, 8)
        (shapes.queryHeads, shapes.keyValueHeads, shapes.headSize) = (4, 2, 16)
        (shapes.experts, shapes.expertsPerToken, shapes.expertInner) = (8, 2, 32)
        let backend = CPUBackend(), plan = Arena.measuring()
        backend.reserveScratch(for: shapes, in: plan)
        let arena = try backend.makeArena(byteCount: plan.byteCount)
        backend.reserveScratch(for: shapes, in: arena)
        #expect(arena.byteCount == plan.byteCount && plan.byteCount > 0)
    }

    @Test func uploadConvertsEveryHalf() throws {
        let bench = try OpBench(CPUBackend(), shapes: ScratchShapes())
        let bits = [UInt16](0...UInt16.max), target = bench.output([bits.count])
        bits.withUnsafeBytes { bench.backend.upload($0, as: .float16, into: target) }
        let halves = bench.values(target)
        #expect(zip(bits, halves).allSatisfy { isSame($1, Float(Float16(bitPattern: $0))) })
        bits.withUnsafeBytes { bench.backend.upload($0, as: .bfloat16, into: target) }
        #expect(zip(bits, bench.values(target)).allSatisfy { isSame($1, Float(bitPattern: UInt32($0) << 16)) })
        #expect(bench.sentinelsAreIntact)
    }

    @Test func downloadReturnsWhatWasUploaded() throws {
        let bench = try OpBench(CPUBackend(), shapes: ScratchShapes()),
            values: [Float] = [1, -0.5, .infinity, 0x1p-130]
        #expect(bench.values(bench.tensor(values, [4])) == values)
        // 1 + 2^-8 lies between two bfloat16 numbers: to even.
        #expect(bench.values(bench.tensor([1 + 0x1p-8, -3.14], [2], .bfloat16)) == [1, -3.140625])
    }

    @Test func theNameTellsTheProductAndTheThreads() {
        #expect(CPUBackend(threads: 1, arithmetic: .plain).name == "cpu (own matrix product, 1 thread)")
        #expect(CPUBackend(threads: 2).name.hasSuffix(", 2 threads)"))
    }

    private func isSame(_ a: Float, _ b: Float) -> Bool { a.bitPattern == b.bitPattern || (a.isNaN && b.isNaN) }
}
