import ArgumentParser
import Martlet

struct BenchCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench", abstract: "Measure the speed of this machine's ops and of whole training steps.",
        subcommands: [Ops.self, Step.self])

    struct Ops: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Time each op, as shares of the device's own matrix product and memory speed.",
            discussion: """
                product% is the share of a large matrix product's speed, memory% of a large copy's or addition's, both \
                measured in the same run: an op near 100% of either is as fast as this device allows.

                  martlet bench ops --shapes wide --tokens 512
                  martlet bench ops --device cuda --shapes qwen3-30b-a3b --tokens 4096
                  martlet bench ops --only experts --only attention
                """)

        @Option(help: "wide, fine (128 small experts) or qwen3-30b-a3b (a layer of it).") var shapes = ShapesName.wide
        @Option(help: "Tokens of the tile.") var tokens = 512
        @Option(help: "Measure only this op. May be repeated.") var only: [String] = []
        @OptionGroup var compute: ComputeOptions
        @Flag(help: "Print one JSON object.") var json = false

        func run() throws {
            let result = try OpBenchmark.run(
                shapes: shapes.shapes, tokens: tokens, only: only, compute: compute.value
            ) { line in
                if !json { Terminal.say(line) }
            }
            if json { Terminal.say(result.json) }
        }
    }

    struct Step: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Time whole steps: forward, backward, AdamW.",
            discussion: """
                Of a model, or of a random one; reports tokens/s, MFU, and planned against measured memory.

                  martlet bench step --preset wide --tokens 1024
                  martlet bench step --model MODEL --tokens 2048 --rank 16 --json
                  martlet bench step --layers 2 --full
                """)

        @Option(help: "Folder of a model.") var model: String?
        @Option(help: "Without --model: a random model of this shape: wide, fine, qwen3-30b-a3b.") var preset =
            ShapesName.wide
        @Option(help: "Layers of the random model (default: the preset's).") var layers: Int?
        @Option(help: "Of the random model: send nearly all tokens to this many experts.") var busyExperts: Int?
        @Option(help: "Tokens of a step.") var tokens = 1024
        @Option(help: "Tokens of each packed sequence (default: one sequence of all tokens).") var sequenceLength = 0
        @Option(help: "JSON list of token ids to use instead of random ones.") var tokensFile: String?
        @Flag(help: "Train every weight instead of an adapter.") var full = false
        @Option(help: "Rank of the adapter (default: 16).") var rank: Int?
        @Option(help: "adamw, or adamw_8bit: moments in a quarter of the memory.") var optim = OptimizerName.adamw
        @Option(help: "Steps measured.") var steps = 5
        @Option(help: "Steps before those.") var warmup = 2
        @Option(help: "Rows that a layer works on at a time (default: planned).") var tileTokens: Int?
        @Option(help: "Memory to plan for, in MiB (default: what is free).") var memoryLimit: Int?
        @Flag(
            help:
                "Also take the device time of each op in one more step, and of each kernel in another, with their shares of what the device's product and memory speeds allow."
        )
        var profile = false
        @Flag(inversion: .prefixedNo, help: "The same bytes each time; without, cuDNN's attention is faster.")
        var deterministic = true
        @OptionGroup var compute: ComputeOptions
        @Flag(help: "Print one JSON object.") var json = false

        func run() throws {
            var settings = StepBenchmark.Settings()
            (settings.model, settings.preset, settings.layers) = (
                model, preset.shapes, layers ?? preset.shapes.layerCount
            )
            (settings.compute, settings.profiles, settings.busyExperts) = (compute.value, profile, busyExperts)
            (settings.tokenCount, settings.rank, settings.steps, settings.warmup) = (tokens, rank ?? 16, steps, warmup)
            settings.compute.isDeterministic = deterministic
            settings.method = full ? .full : .lora
            settings.optim = optim.type
            settings.tileTokens = tileTokens
            settings.memoryLimit = memoryLimit.map { $0 << 20 }
            settings.sequenceLength = sequenceLength
            if let tokensFile { try settings.readTokens(tokensFile) }
            let result = try StepBenchmark.run(settings, tell: Terminal.complain)
            Terminal.say(json ? result.json : result.description)
        }

        func validate() throws {
            if model != nil, layers != nil || busyExperts != nil {
                throw ValidationError("--layers and --busy-experts are of the random model, and --model names another")
            }
            if full, rank != nil { throw ValidationError("--full trains every weight: there is no adapter for --rank") }
            if let layers, layers < 1 || layers > 512 { throw ValidationError("--layers must be 1 to 512") }
            if let memoryLimit, memoryLimit < 1 || memoryLimit > 1 << 30 {
                throw ValidationError("--memory-limit is out of range")
            }
        }
    }
}

enum ShapesName: String, ExpressibleByArgument, CaseIterable {
    case wide, fine, qwen30b = "qwen3-30b-a3b"
    var shapes: OpBenchmark.Shapes { OpBenchmark.Shapes(rawValue: rawValue) ?? .wide }
}

enum OptimizerName: String, ExpressibleByArgument, CaseIterable {
    case adamw, adamw8Bit = "adamw_8bit"
    var type: Recipe.OptimizerType { Recipe.OptimizerType(rawValue: rawValue) ?? .adamw }
}

struct DoctorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor", abstract: "Check whether this machine can train.",
        discussion: """
            Tells processors, memory and matrix library, tries the disk, and examines the arithmetic: every op, forward \
            and backward and at awkward sizes, with the matrix library against Martlet's own product and with all \
            threads against one; then the gradients of a tiny model against differences of its loss. Exit code 1 if \
            something is broken.

            With --kernels, compiles every GPU kernel for every GPU architecture instead, and keeps what it compiled \
            (MARTLET_CACHE). That needs NVRTC and no GPU; MARTLET_CUDA_PATH names folders to find NVRTC in.

            With --goldens, holds whole models on --device against what transformers and PEFT computed with them \
            (tools/goldens/model.py): logits, losses, gradients, five steps.

              martlet doctor --gpu --only experts --only 'attention T193'
              martlet doctor --goldens Tests/ModelTests/ModelGoldens --device cuda-fp32
            """)

    @Option(help: "Folder whose disk is tried.") var folder = "."
    @Flag(help: "Examine the GPU only.") var gpu = false
    @Option(help: "Examine the arithmetic of this op only, or of the cases whose names begin so. May be repeated.")
    var only: [String] = []
    @Flag(help: "Compile every GPU kernel instead; needs no GPU.") var kernels = false
    @Option(help: "Compare with the goldens in this folder instead.") var goldens: String?
    @OptionGroup var compute: ComputeOptions
    @Flag(help: "Print one JSON object.") var json = false

    func validate() throws {
        if goldens != nil, gpu || kernels || !only.isEmpty {
            throw ValidationError("--goldens excludes --gpu, --kernels and --only")
        }
        if goldens == nil, compute.value != Compute() {
            throw ValidationError("--device and --threads have no effect without --goldens")
        }
        if gpu && kernels { throw ValidationError("--gpu and --kernels exclude each other") }
        if kernels && !only.isEmpty { throw ValidationError("--only has no effect with --kernels") }
    }

    func run() throws {
        let report = { (check: Doctor.Check) in if !json { Terminal.say(check.description) } }
        let doctor = try examine(report)
        if json { Terminal.say(doctor.json) }
        if !doctor.isSound { throw ExitCode(1) }
    }

    private func examine(_ report: (Doctor.Check) -> Void) throws -> Doctor {
        if let goldens { return try Doctor.examine(goldens: goldens, compute: compute.value, progress: report) }
        if kernels { return try Doctor.examineKernels(progress: report) }
        return try Doctor.examine(folder: folder, onlyGPU: gpu, ops: only, progress: report)
    }
}
