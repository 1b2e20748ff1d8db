import MartletCore
import MartletTestSupport
import Testing

@testable import MartletCUDA

/// Which way experts are computed.
@Suite struct ExpertsPathTests {
    @Test func theFastestIsTakenUnlessAnotherIsNamed() throws {
        for unnamed in [nil, "", "auto"] {
            #expect(try CUDABackend.expertsPath(capability: 90, named: unnamed) == .hopper)
            for capability in [75, 80, 86, 89, 100, 120] {
                #expect(try CUDABackend.expertsPath(capability: capability, named: unnamed) == .portable)
            }
        }
        for path in ExpertsPath.allCases {
            #expect(try CUDABackend.expertsPath(capability: 90, named: path.rawValue) == path)
        }
    }

    @Test func aWrongNameIsRefused() {
        let typo = expectRefusal("a typo") { _ = try CUDABackend.expertsPath(capability: 90, named: "hoper") }
        #expect(typo?.location == "MARTLET_MOE_BACKEND" && typo?.remedy == "write 'hopper'")
        let other = expectRefusal("something else") { _ = try CUDABackend.expertsPath(capability: 90, named: "?") }
        #expect(other?.reason == "there are auto, hopper, portable, loop" && other?.remedy == "unset it")
        let old = expectRefusal("Hopper's on Ampere") {
            _ = try CUDABackend.expertsPath(capability: 80, named: "hopper")
        }
        #expect(old?.reason?.contains("8.0") == true)
    }

    @Test func groupedKernelsTakeWhatTheyWereMadeFor() {
        func isGrouped(
            _ dtype: DType = .bfloat16, dropsOut: Bool = false, trainsWeights: Bool = false,
            _ change: (inout ExpertsSize) -> Void = { _ in }
        ) -> Bool {
            var shapes = ScratchShapes()
            (shapes.tokens, shapes.hidden, shapes.expertInner) = (7, 40, 24)
            (shapes.experts, shapes.expertsPerToken, shapes.rank) = (5, 2, 16)
            var size = ExpertsSize(shapes)
            change(&size)
            return size.obstacle(dtype, dropsOut: dropsOut, trainsWeights: trainsWeights) == nil
        }
        #expect(isGrouped())
        for rank in [0, 1, 8, 24, 32, 64] {
            #expect(isGrouped { $0.a = rank }, "rank \(rank)")
            var size = ExpertsSize(ScratchShapes())
            size.a = rank
            #expect(size.grouped.a == (rank + 15) / 16 * 16)
        }
        for rank in [65, 80] { #expect(!isGrouped { $0.a = rank }, "rank \(rank)") }
        #expect(isGrouped { $0.e = 1024 } && !isGrouped { $0.e = 1025 })
        #expect(!isGrouped { $0.h = 41 } && !isGrouped { $0.f = 20 })
        #expect(!isGrouped(.float32) && !isGrouped(dropsOut: true) && !isGrouped(trainsWeights: true))
    }

    @Test func whoReadsOnceForProductAndGradient() {
        func reads(_ path: ExpertsPath = .hopper, rank: Int = 16, outputs: Int = 1536) -> Bool {
            OutputAdapterKernel(path, rank: rank, outputs: outputs) != nil
        }
        #expect(reads() && reads(outputs: 512) && reads(outputs: 5632))
        #expect(!reads(.portable) && !reads(rank: 8) && !reads(rank: 32))
        #expect(!reads(outputs: 1280), "not shared by eight blocks")
        #expect(!reads(outputs: 6144), "above the shared memory of a block")
    }

    @Test func attentionsWayIsTheBestUnlessAnotherIsNamed() throws {
        for unnamed in [nil, "", "auto"] { #expect(try CUDABackend.attentionPath(named: unnamed) == .hopper) }
        for path in AttentionPath.allCases { #expect(try CUDABackend.attentionPath(named: path.rawValue) == path) }
        let typo = expectRefusal("a typo") { _ = try CUDABackend.attentionPath(named: "falsh") }
        #expect(typo?.location == "MARTLET_ATTENTION" && typo?.remedy == "write 'flash'")
    }
}
