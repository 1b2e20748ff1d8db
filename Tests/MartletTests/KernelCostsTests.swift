import Foundation
import MartletCore
import MartletModel
import Testing

@testable import Martlet

/// What kernels need, by the names that a profile gives them.
@Suite struct KernelCostsTests {
    private static let layers = 3
    private let c = ModelConfiguration.benchmark(.qwen30b, layers: layers)

    /// The ways of computing, by the kernels of each op that multiply; `T` tokens.
    enum Way: CaseIterable {
        case hopper, portable, loop, whole

        private func projections(_ T: Int) -> [String] {
            guard self == .hopper else {
                return shapes.flatMap { products("linear", T, I: $0.I, O: $0.O, A: $0.A, times: layers) }
            }
            let ends = ["linear": 0, "linearBackward": 1].flatMap { op, back in
                [
                    "\(op): projection_low TRANSPOSED=\(back) RANK=16 COUNT=1 ROWS=32 DEPTH=8",
                    "\(op): projection TRANSPOSED=\(back) TILE=256 CLUSTER=2 RANK=16",
                ]
            }
            return ends + products("linear", T, I: 2048, O: 128, A: 0, times: layers) + [
                "linear: projection_low TRANSPOSED=0 RANK=16 COUNT=3 ROWS=32 DEPTH=6",
                "linear: projection TRANSPOSED=0 TILE=128 CLUSTER=1 RANK=16",
                "linearBackward: projection_gradient RANK=16",
            ]
        }

        /// Query, key, value, output, router.
        private var shapes: [(I: Int, O: Int, A: Int)] {
            [(2048, 4096, rank), (2048, 512, rank), (2048, 512, rank), (4096, 2048, rank), (2048, 128, 0)]
        }
        private var rank: Int { self == .whole ? 0 : 16 }

        /// The library's products of a weight and its adapter, there and back.
        private func products(_ op: String, _ R: Int, I: Int, O: Int, A: Int, times: Int) -> [String] {
            func all(_ op: String, _ products: [(Int, Int, Int)]) -> [String] {
                products.flatMap { m, n, k in
                    [String](repeating: "\(op): cuBLASLt \(m) x \(n) x \(k)", count: times)
                }
            }
            let weight = all(op, [(R, O, I)]) + all(op + "Backward", [(R, I, O)])
            if self == .whole { return weight + all(op + "Backward", [(O, I, R)]) }
            guard A > 0 else { return weight }
            let up = op == "experts" ? ["experts: add_low HALF=1 TOP_K=8"] : all(op, [(R, O, A)])
            return weight + up + all(op, [(R, A, I)])
                + all(op + "Backward", [(R, A, O), (R, I, A), (A, I, R), (O, A, R)])
        }

        private func experts(_ R: Int) -> [String] {
            let shape = "HIDDEN=2048 INNER=768 TOP_K=8 RANK=16", back = "expertsBackward: "
            func gradient(_ gathers: Int, _ width: Int, _ outputMajor: Int) -> String {
                back
                    + "lora_gradient GATHERS=\(gathers) WIDTH=\(width) RANK=16 TOP_K=8 OUTPUT_MAJOR=\(outputMajor) DEPTH=2"
            }
            let gradients = [gradient(1, 2048, 0), gradient(0, 768, 0), gradient(1, 2048, 1)]
            switch self {
            case .hopper:
                return gradients + [
                    "experts: grouped_gemm_low MODE=0 \(shape)", "experts: grouped_gemm_low MODE=1 \(shape)",
                    back + "grouped_gemm_low MODE=2 \(shape)", back + "grouped_gemm_dx MODE=3 \(shape)",
                    back + "lora_backward WIDTH=1536",
                ]
            case .portable:
                func project(_ gathers: Int, _ width: Int) -> String {
                    "lora_project GATHERS=\(gathers) WIDTH=\(width) RANK=16 TOP_K=8 BLOCKS=2"
                }
                return gradients + [
                    gradient(0, 1536, 1), "experts: \(project(1, 2048))", "experts: \(project(0, 768))",
                    back + project(1, 2048), back + project(0, 1536),
                    // Made again where it was not kept.
                    back + project(0, 768), "experts: grouped_gemm MODE=0 \(shape)",
                    "experts: grouped_gemm MODE=1 \(shape)", back + "grouped_gemm MODE=2 \(shape) TILE_COLUMNS=128",
                    back + "grouped_gemm MODE=3 \(shape) TILE_COLUMNS=128",
                ]
            case .loop, .whole:
                // Two experts share the rows.
                return [R / 3, R - R / 3].flatMap { rows in
                    products("experts", rows, I: 2048, O: 1536, A: rank, times: layers)
                        + products("experts", rows, I: 768, O: 2048, A: rank, times: layers)
                }
            }
        }

        private var attention: [String] {
            switch self {
            case .hopper:
                ["delta", "backward", "finish"].map { "attentionBackward: attention_sm90_\($0)" }
                    + ["attention: attention_sm90_forward"]
            case .portable:
                ["attention: attention_flash HEAD=128", "attentionBackward: attention_flash_backward HEAD=128"]
            case .loop: ["attention: cuDNN attention", "attentionBackward: cuDNN attention"]
            case .whole:
                [
                    "attention: attention_plain HALF=1", "attentionBackward: attention_plain_keys HALF=1",
                    "attentionBackward: attention_plain_queries HALF=1",
                ]
            }
        }

        private func loss(_ T: Int) -> [String] {
            [T - 1000, 1000].flatMap { C in
                ["\(C) x 151936 x 2048", "\(C) x 2048 x 151936"] + (self == .whole ? ["151936 x 2048 x \(C)"] : [])
            }.map { "crossEntropy: cuBLASLt \($0)" } + ["crossEntropy: cross_entropy HALF=1"]
        }

        func names(_ T: Int) -> [String] { projections(T) + experts(8 * T) + attention + loss(T) }
    }

    private func costs(_ lengths: [Int], _ settings: ModelSettings) -> StepCosts {
        var step = PackedStep()
        for length in lengths {
            step.append([Int32](repeating: 1, count: length), isTrained: [Bool](repeating: true, count: length))
        }
        return StepCosts(c, step, settings, dtype: .bfloat16, trainedCount: 1000)
    }
    private let lora = ModelSettings(.lora, adapter: LoRASettings(rank: 16, alpha: 32))

    private func op(_ name: String) -> String { String(name.prefix { $0 != ":" }) }

    private func measured(
        _ kernels: KernelCosts, _ names: [String]
    ) -> [(time: KernelCosts.Time, cost: StepCosts.Cost?)] {
        kernels.measured(Dictionary(grouping: names) { $0 }.map { ($0, $1.count, 1) })
    }

    /// Whether the operations of each op's kernels are the op's.
    private func agree(_ kernels: KernelCosts, _ names: [String]) -> Bool {
        var sums: [String: Double] = [:]
        for kernel in measured(kernels, names) { sums[op(kernel.time.name), default: 0] += kernel.cost?.flops ?? 0 }
        let needed = kernels.step.costs.mapValues(\.flops).filter { $0.value > 0 }
        return needed.allSatisfy { abs((sums[$0] ?? 0) / $1 - 1) < 1e-12 }
    }

    @Test(arguments: Way.allCases, [[4096], [100, 28, 3000]])
    func kernelsOfAnOpMultiplyWhatItMust(way: Way, lengths: [Int]) {
        let kernels = KernelCosts(costs(lengths, way == .whole ? ModelSettings(.full) : lora))
        let names = way.names(lengths.reduce(0, +))
        #expect(agree(kernels, names))
        let multiplying = measured(kernels, names).filter { ($0.cost?.flops ?? 0) > 0 }
        #expect(multiplying.count >= 15)
        for kernel in multiplying where !kernel.time.name.contains("*") {
            #expect(!agree(kernels, names.filter { $0 != kernel.time.name }), "without \(kernel.time.name)")
        }
    }

    @Test func kernelsOfOneWorkAreToldTogether() throws {
        let costs = costs([4096], lora)
        let kernels = KernelCosts(costs).measured([
            ("linear: projection TRANSPOSED=0 TILE=128 CLUSTER=1 RANK=16", 3, 1),
            ("linear: projection TRANSPOSED=0 TILE=256 CLUSTER=2 RANK=16", 3, 2),
            ("linear: to_half HALF=0", 6, 0.5), ("adamW: adamw", 1, 0.25), ("adamW: adamw_split", 1, 0.125),
        ])
        #expect(
            kernels.map(\.time.name) == [
                "linear: projection TRANSPOSED=0 TILE=* CLUSTER=* RANK=16", "linear: to_half HALF=0", "adamW: adamw*",
            ])
        #expect(kernels.map(\.time.count) == [6, 6, 2] && kernels.map(\.time.milliseconds) == [3, 0.5, 0.375])
        // 3 layers of q, k, v and o with their second factors.
        let projection = try #require(kernels[0].cost)
        let columns = Double(2064 * (4096 + 512 + 512) + 4112 * 2048)
        #expect(projection.flops == 2 * 4096 * 3 * columns)
        #expect(kernels[1].cost == nil, "nothing is counted, so there is no share")
        #expect(kernels[2].cost?.bytes == 28_000)
    }

    /// Not what is computed again, and of the library no more than it was asked for.
    @Test func nothingCountsTwice() throws {
        let costs = costs([4096], lora)
        func flops(_ name: String, times: Int) -> Double? {
            KernelCosts(costs).measured([(name, times, 1)]).first?.cost?.flops
        }
        let up = "experts: grouped_gemm_low MODE=0 HIDDEN=2048 INNER=768 TOP_K=8 RANK=16"
        #expect(flops(up, times: 3) == flops(up, times: 6))
        let router = "linear: cuBLASLt 4096 x 128 x 2048", one: Double = 2 * 4096 * 128 * 2048
        #expect(flops(router, times: 3) == 3 * one && flops(router, times: 6) == 3 * one)
        // Keys and values of two of the layers; the third went another way.
        let keys = "linear: cuBLASLt 4096 x 512 x 2048"
        #expect(flops(keys, times: 4) == 16 * one && flops(keys, times: 6) == 24 * one)
    }

    /// Bytes: rows of tokens, weights, adapters, what is written; twice a gradient's sums where both kernels have them.
    @Test func operandsCountOnce() throws {
        let kernels = KernelCosts(costs([4096], lora)).measured([
            ("experts: combine HIDDEN=2048 TOP_K=8", 3, 2),
            ("expertsBackward: lora_gradient GATHERS=0 WIDTH=768 RANK=16 TOP_K=8 OUTPUT_MAJOR=0 DEPTH=2", 3, 1),
        ])
        let tokens = 2 * 4096 * 2048, rows = 8 * tokens
        #expect(kernels[0].cost?.bytes == Double(3 * (rows + 2 * tokens + 8 * 8 * 4096)))
        let act = 2 * 8 * 4096 * 768, low = 2 * 8 * 4096 * 16, gradient = 4 * 128 * 16 * 768
        #expect(kernels[1].cost?.bytes == Double(3 * (act + low + gradient)))
    }

    /// Every entry that is counted is one of a kernel.
    @Test func entriesAreThoseOfTheSources() throws {
        let tests = URL(filePath: #filePath).deletingLastPathComponent()
        let folder = tests.appending(path: "../../Sources/CMartletKernels/kernels")
        let files = try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
        let sources = try files.map { try String(contentsOf: $0, encoding: .utf8) }
        let entries = KernelCosts(costs([64], lora)).entries
        #expect(entries.contains("grouped_gemm_low") && !sources.isEmpty)
        for entry in entries where !["cuBLASLt", "cuDNN"].contains(entry) {
            #expect(sources.contains { $0.contains("\(entry)(") }, "\(entry)")
        }
    }

    @Test func resultsTellTheShare() throws {
        var result = StepBenchmark(
            backend: "", model: "", tokenCount: 1, trainedCount: 1, stepSeconds: [1], losses: [], flops: 1,
            peakGigaflops: 1, plannedByteCount: 0, hostByteCount: 0, memory: [], processByteCount: 0, peakByteCount: 0,
            growthByteCount: 0, choice: "")
        result.kernels = [
            .init(name: "experts: combine", count: 2, milliseconds: 4, roofMilliseconds: 3),
            .init(name: "zero_bytes", count: 1, milliseconds: 1, roofMilliseconds: 0),
        ]
        #expect(result.description.contains("4.00 ms in 2 x experts: combine, 75%\n         1.00 ms in 1 x zero_bytes"))
        #expect(!result.description.contains("zero_bytes,"))
        #expect(result.json.contains("\"roof_ms\":3") || result.json.contains("\"roof_ms\": 3"))
    }
}

private let layers = 3
