import Foundation
import MartletCore
import MartletTestSupport
import Testing

@testable import MartletCUDA

/// What CI compiles is all that there is. That it compiles, `martlet doctor --kernels` tells.
@Suite struct KernelCatalogTests {
    private let files = Set(KernelSources.text.keys.filter { $0.hasSuffix(".cu") })
    private let repository = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../..").standardized

    @Test func everySourceIsEmbedded() throws {
        let folder = repository.appending(path: "Sources/CMartletKernels/kernels")
        for name in try FileManager.default.contentsOfDirectory(atPath: folder.path) {
            let text = try String(contentsOf: folder.appending(path: name), encoding: .utf8)
            let isEmbedded = KernelSources.text[name] == text
            #expect(isEmbedded, "\(name) stands in kernels.c")
        }
    }

    @Test(arguments: KernelCatalog.architectures)
    func everySourceIsCompiled(_ architecture: Architecture) {
        let variants = KernelCatalog.variants(for: architecture)
        #expect(Set(variants).count == variants.count, "none twice")
        let hopperOnly: Set = [
            "grouped_gemm_sm90.cu", "grouped_gemm_low_sm90.cu", "grouped_gemm_dx_sm90.cu", "projection_sm90.cu",
            "projection_low.cu", "projection_gradient.cu", "attention_sm90_forward.cu", "attention_sm90_backward.cu",
            "attention_sm90_finish.cu", "lora_backward_sm90.cu",
        ]
        let wanted = architecture.capability == 90 ? files : files.subtracting(hopperOnly)
        #expect(Set(variants.map(\.file)) == wanted)
    }

    /// A source that knows both storages is compiled for both.
    @Test func bothStoragesAreCompiled() {
        let variants = KernelCatalog.variants(for: Architecture(capability: 80))
        for file in files where KernelSources.text[file]?.contains("#include \"elements.cuh\"") == true {
            let halves = variants.filter { $0.file == file }.flatMap(\.defines).filter { $0.name == "HALF" }
            #expect(Set(halves.map(\.value)) == [0, 1], "\(file)")
        }
    }

    /// A kernel that is renamed in one place only is found by no compiler.
    @Test func everyKernelIsCalledByItsName() throws {
        let folder = repository.appending(path: "Sources/MartletCUDA")
        let swift = try FileManager.default.subpathsOfDirectory(atPath: folder.path).filter { $0.hasSuffix(".swift") }
        let calls = try swift.map { try String(contentsOf: folder.appending(path: $0), encoding: .utf8) }.joined()
        for file in files.sorted() {
            let text = KernelSources.text[file] ?? ""
            let kernels = text.matches(of: #/__global__ void(?: __\w+__\([^)]*\))* (\w+)\(/#).map { $0.1 }
            #expect(!kernels.isEmpty, "\(file)")
            for kernel in kernels {
                let isCalled = calls.contains("\"\(kernel)\"")
                #expect(isCalled, "\(kernel) of \(file)")
            }
        }
    }

    /// Kernels are launched with leave to begin early; one that forgot to wait would read what is not yet written. What
    /// becomes of the line, `Compiler` checks in the code that is made.
    @Test func everyKernelBeginsByWaiting() {
        for file in files.sorted() {
            let text = KernelSources.text[file] ?? ""
            let kernels = text.matches(of: #/__global__[^{]*\{\s*(begin_kernel\(\);)?/#)
            #expect(!kernels.isEmpty && kernels.count == text.split(separator: "__global__").count - 1, "\(file)")
            for kernel in kernels {
                let waits = kernel.1 != nil
                #expect(waits, "\(file): \(kernel.0)")
            }
        }
    }

    @Test func codeWithoutTheWaitIsFound() {
        let head =
            ".visible .entry first(\n.param .u64 first_param_0\n)\n{\n.reg .b32 %r<2>;\nld.param.u64 %rd1, [first_param_0];\n"
        let wait = "// begin inline asm\ngriddepcontrol.wait;\n"
        let load = "ld.global.u32 %r1, [%rd1];\n", end = "ret;\n}\n"
        let second = head.replacing("first", with: "second")
        #expect(Compiler.entryWithoutWait(in: head + wait + load + end) == nil)
        #expect(Compiler.entryWithoutWait(in: head + wait + load + end + second + wait + end) == nil)
        #expect(Compiler.entryWithoutWait(in: head + load + wait + end) == "first", "too late")
        #expect(Compiler.entryWithoutWait(in: head + wait + load + end + second + load + end) == "second")
        #expect(Compiler.entryWithoutWait(in: head + "@%p1 bra $L;\n" + wait + end) == "first", "some threads only")
        #expect(Compiler.entryWithoutWait(in: head) == "first", "never")
    }

    @Test(arguments: KernelCatalog.architectures, [64, 128, 192, 256])
    func attentionFitsInSharedMemory(_ architecture: Architecture, headSize: Int) throws {
        let most = architecture.sharedBytes
        let forward = FlashShape(headSize: headSize, sharedBytes: most)
        let backward = FlashBackwardShape(headSize: headSize, sharedBytes: most)
        // From Ampere on a multiprocessor has 1 KiB more than a block may have, and takes 1 KiB for each.
        let taken = architecture.capability >= 80 ? 1 << 10 : 0
        #expect((forward.map { $0.blocks * ($0.sharedBytes + taken) } ?? 0) <= most + taken)
        #expect((backward?.sharedBytes ?? 0) + 128 <= most)
        let isTuring = architecture.capability == 75
        #expect((forward == nil) == (headSize > 128 && isTuring), "these are left to attention_plain.cu")
        #expect((backward == nil) == (headSize == 256 && most == 99 << 10 || headSize > 128 && isTuring), "and these")
    }

    @Test func aNewerGPUStandsInForAnOlderOne() throws {
        #expect(try Architecture.standIn(on: 90, named: nil) == nil)
        #expect(try Architecture.standIn(on: 90, named: "") == nil)
        let turing = try #require(try Architecture.standIn(on: 90, named: "7.5"))
        #expect(turing.name == "compute_75" && turing.half == .float16 && !turing.overlapsKernels)
        #expect(try Architecture.standIn(on: 120, named: "8.6")?.half == .bfloat16)
        for (capability, name) in [(90, "9.0"), (86, "8.9"), (75, "7.5"), (100, "9.0"), (90, "7"), (90, "seven")] {
            let error = expectRefusal(name) { _ = try Architecture.standIn(on: capability, named: name) }
            #expect(error?.location == "MARTLET_CAPABILITY", "\(name) on \(capability)")
        }
    }

    @Test(arguments: KernelCatalog.architectures)
    func groupedProductsFitInSharedMemory(_ architecture: Architecture) {
        #expect(PortableTile.candidates(architecture).allSatisfy { $0.sharedBytes <= architecture.sharedBytes })
    }
}
