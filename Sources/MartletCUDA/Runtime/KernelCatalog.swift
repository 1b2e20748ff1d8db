internal import Dispatch
package import MartletCore

/// Every kernel source with representative constants, so that a machine without a GPU can compile all of it.
///
/// Constants are those of a common model (H 2048, F 768, E 128, K 8, D 128, ranks 16 and 64), and odd ones where a kernel
/// has a slow path for them. Where an op chooses constants by architecture or width, its own rule is asked.
package enum KernelCatalog {
    static let architectures = [75, 80, 86, 89, 90, 100, 120].map { Architecture(capability: $0) }

    static func variants(for architecture: Architecture) -> [KernelVariant] {
        // The slow ones first, so that no processor is left with one at the end.
        attention(architecture) + products(architecture) + projections(architecture) + outputAdapters(architecture)
            + adapters(architecture) + plain + routing
    }

    // MARK: The floors of a layer

    private static func attention(_ architecture: Architecture) -> [KernelVariant] {
        let sizes = [256, 192, 128, 64], sharedBytes = architecture.sharedBytes
        let backward = sizes.compactMap { FlashBackwardShape(headSize: $0, sharedBytes: sharedBytes) }
        let forward = sizes.flatMap { FlashShape.candidates(headSize: $0, architecture) }
        let hopper = architecture.capability == 90 ? ["forward", "backward", "finish"] : []
        return [[], [Device.racecheck]].flatMap { form in
            hopper.map { KernelVariant("attention_sm90_\($0).cu", form) }
        }
            + backward.map { KernelVariant("attention_flash_backward.cu", $0.defines) }
            + forward.map { KernelVariant("attention_flash.cu", [KernelDefine("HEAD", $0.headSize)] + $0.defines) }
            + halves.flatMap { half in
                [10, 96].map { KernelVariant("attention_plain.cu", [half, KernelDefine("HEAD", $0)]) }
            }
    }

    /// Grouped products: every mode without an adapter and with one of each rank.
    private static func products(_ architecture: Architecture) -> [KernelVariant] {
        let tiles = PortableTile.candidates(architecture)
        return [0, 16, 64].flatMap { rank in
            GroupedExperts.Mode.allCases.flatMap { mode in
                let defines = [
                    KernelDefine("MODE", mode.rawValue), KernelDefine("HIDDEN", 2048), KernelDefine("INNER", 768),
                    chosen, KernelDefine("RANK", rank),
                ]
                // Candidates differ alike whatever the rank; one of these modes takes weights as stored, one along K.
                let isTried = rank == 16 && (mode == .up || mode == .dact)
                let portable = tiles.prefix(isTried ? tiles.count : 1).map {
                    KernelVariant("grouped_gemm_sm80.cu", defines + $0.defines)
                }
                guard architecture.capability == 90 else { return portable }
                return [KernelVariant(GroupedExperts.hopperFile(mode, rank: rank), defines)] + portable
            }
        }
    }

    /// Dense projections with adapters, on Hopper.
    private static func projections(_ architecture: Architecture) -> [KernelVariant] {
        guard architecture.capability == 90 else { return [] }
        return [16, 64].flatMap { rank in
            HopperProjection.kernels(rank: rank, rows: 4096, multiprocessors: 132)
        }
    }

    /// Of experts, on Hopper.
    private static func outputAdapters(_ architecture: Architecture) -> [KernelVariant] {
        guard architecture.capability == 90 else { return [] }
        return [512, 1536].compactMap { OutputAdapterKernel(.hopper, rank: 16, outputs: $0)?.variant }
    }

    private static func adapters(_ architecture: Architecture) -> [KernelVariant] {
        [16, 64].flatMap { rank in
            let gradients = GradientTile.candidates(rank: rank, architecture)
            return [KernelVariant("lora_pack.cu", [KernelDefine("WIDTH", rank)])]
                + [(1, 2048), (0, 768)].flatMap { gathers, width in
                    let defines = [
                        KernelDefine("GATHERS", gathers), KernelDefine("WIDTH", width), KernelDefine("RANK", rank),
                        chosen,
                    ]
                    return ProjectTile.candidates.map { KernelVariant("lora_project.cu", defines + $0.defines) }
                        + gradients.flatMap { tile in
                            [0, 1].map {
                                KernelVariant(
                                    "lora_gradient.cu", defines + [KernelDefine("OUTPUT_MAJOR", $0)] + tile.defines)
                            }
                        }
                        // Of an adapter whose rank is padded.
                        + [0, 1].map {
                            KernelVariant(
                                "lora_gradient.cu",
                                defines + [KernelDefine("OUTPUT_MAJOR", $0), KernelDefine("OWN_RANK", rank - 11)]
                                    + gradients[0].defines)
                        }
                }
        }
    }

    private static var routing: [KernelVariant] {
        [(128, 8), (5, 2)].flatMap { experts, count in
            let experts = KernelDefine("EXPERTS", experts), count = KernelDefine("TOP_K", count)
            return [KernelVariant("routing.cu", [experts])]
                + halves.map { KernelVariant("router.cu", [experts, count, $0]) }
        } + halves.map { KernelVariant("experts_loop.cu", [$0, chosen]) }
            + [KernelVariant("combine.cu", [KernelDefine("HIDDEN", 2048), chosen])]
    }

    private static var plain: [KernelVariant] {
        ["elementwise.cu", "random.cu", "bias.cu", "cross_entropy.cu", "lora_pad.cu"].flatMap { file in
            halves.map { KernelVariant(file, [$0]) }
        } + ["copy.cu", "optimizer.cu", "reduce.cu"].map { KernelVariant($0) }
            + [(1, 1), (1, 0), (0, 0)].map { half, result in
                KernelVariant("product.cu", [KernelDefine("HALF", half), KernelDefine("PARAMETER_HALF", result)])
            }
            // Frozen and trained weights of a model in bfloat16, and one in float32; an odd width.
            + [(1, 1, 2048), (1, 0, 2048), (0, 0, 2048), (1, 1, 49)].flatMap { half, parameter, width in
                let storage = [KernelDefine("HALF", half), KernelDefine("PARAMETER_HALF", parameter)]
                let isOdd = width % 8 != 0, head = KernelDefine("WIDTH", isOdd ? 10 : 128)
                let row = storage + [KernelDefine("WIDTH", width)]
                return [
                    KernelVariant("embedding.cu", row),
                    KernelVariant("rms_norm.cu", row + [KernelDefine("THREADS", NormLaunch.threads(width: width))]),
                    KernelVariant("rotate.cu", storage + [head, KernelDefine("TRAINS", 1 - parameter)]),
                ]
            }
    }

    private static let halves = [1, 0].map { KernelDefine("HALF", $0) }
    private static let chosen = KernelDefine("TOP_K", 8)
}

// MARK: Compiling all of it

extension KernelCatalog {
    /// What became of the kernels of one architecture.
    package struct Outcome: Sendable {
        /// "sm_90a"
        package let architecture: String
        /// "NVRTC 13.0"
        package let compiler: String
        package let count: Int
        package let failures: [MartletError]
    }

    /// Compiles the catalog for one architecture after the other, each on all processors. What the kernels' cache has is
    /// not compiled again.
    package static func compile(then report: (Outcome) -> Void) throws(MartletError) {
        let compiler = try Compiler()
        for architecture in architectures {
            let variants = variants(for: architecture)
            var failures = [MartletError?](repeating: nil, count: variants.count)
            failures.withUnsafeMutableBufferPointer { failures in
                // Each iteration has a place of its own, which the compiler cannot know.
                nonisolated(unsafe) let failures = failures
                DispatchQueue.concurrentPerform(iterations: variants.count) { i in
                    do throws(MartletError) {
                        _ = try KernelCache.standard.image(of: variants[i], for: architecture, by: compiler)
                    } catch {
                        failures[i] = error
                    }
                }
            }
            report(
                Outcome(
                    architecture: architecture.name, compiler: compiler.version, count: variants.count,
                    failures: failures.compactMap { $0 }))
        }
    }
}
