internal import MartletCUDA
internal import MartletCore
internal import MartletModel

/// Whole steps: forward, backward and AdamW on random tokens, as a trainer does them.
public struct StepBenchmark: Sendable, CustomStringConvertible {
    /// What to run.
    public struct Settings: Sendable {
        /// A model folder; nil makes a random model of `preset`.
        public var model: String?
        /// Sizes of the random model.
        public var preset = OpBenchmark.Shapes.wide
        /// Experts of the random model that nearly all tokens go to; nil: all, about evenly.
        public var busyExperts: Int?
        /// Layers of the random model.
        public var layers = 8
        /// Tokens to take; random ones if empty.
        public var tokens: [Int32] = []
        /// Tokens of each packed sequence; 0: one sequence of all tokens.
        public var sequenceLength = 0
        /// Tokens of the step.
        public var tokenCount = 1024
        /// Train an adapter on every projection and expert, or every weight.
        public var method = Recipe.Method.lora
        /// Rank of that adapter.
        public var rank = 16
        /// What the optimizer keeps its moments in.
        public var optim = Recipe.OptimizerType.adamw
        /// Steps measured.
        public var steps = 5
        /// Steps before those.
        public var warmup = 2
        /// Where to compute.
        public var compute = Compute()
        /// Take the device time of each op in one more step (CUDA).
        public var profiles = false
        /// Bytes to plan for; nil: what is free.
        public var memoryLimit: Int?
        /// Rows a layer works on at a time; nil: planned.
        public var tileTokens: Int?

        /// The defaults.
        public init() {}
    }

    /// The backend.
    public var backend: String
    /// What the model is.
    public var model: String
    /// Tokens of a step.
    public var tokenCount: Int
    /// Numbers that are trained.
    public var trainedCount: Int
    /// Seconds of each measured step.
    public var stepSeconds: [Double]
    /// Loss of each step, those of the warmup first, in nats.
    public var losses: [Double]
    /// Floating-point operations of a step: see ``formula``.
    public var flops: Double
    /// GFLOP/s of a large matrix product on the same device.
    public var peakGigaflops: Double
    /// GFLOP/s of that product when the GPU has rested, and GB/s of a large copy or addition; 0 without a profile.
    public var roofGigaflops = 0.0, memoryGigabytes = 0.0
    /// Bytes of the arena, as planned.
    public var plannedByteCount: Int
    /// Bytes of host memory beside that, pinned.
    public var hostByteCount: Int
    /// The rows of both.
    public var memory: [String]
    /// Bytes of the process before the arena was made.
    public var processByteCount: Int
    /// The most bytes the process had resident.
    public var peakByteCount: Int
    /// How much the peak grew after the first step: nothing allocates then.
    public var growthByteCount: Int
    /// What the plan chose.
    public var choice: String
    /// Rows of the fullest expert over the mean, the mean of the layers.
    public var loadMaxOverMean = 0.0
    /// Seconds of the first step, and from the start of everything to its end.
    public var firstStepSeconds = 0.0, startSeconds = 0.0
    /// How the weights of a model folder were read: "4.6 GiB in 1.2 s, 4.1 GB/s"; empty where nothing was.
    public var loading = ""
    /// How the tiles of a GPU's kernels were chosen.
    public var tiles = ""
    /// Kernels and library calls of a step on a GPU.
    public var launchCount = 0
    /// What a GPU took in the measured steps, in the mean, and may take; 0 where it does not tell or they took less than a second.
    public var watts = 0.0, wattLimit = 0.0
    /// Device time of each op in one step on a GPU, if asked for.
    public var profile: [OpTime] = []
    /// The same by kernel, of a step more; what comes before a colon is the op, and * stands where kernels of the same work differ.
    public var kernels: [OpTime] = []

    /// Median seconds of a step.
    public var medianSeconds: Double { stepSeconds.isEmpty ? 0 : stepSeconds.sorted()[stepSeconds.count / 2] }
    /// Tokens in a second.
    public var tokensPerSecond: Double { medianSeconds > 0 ? Double(tokenCount) / medianSeconds : 0 }
    /// Share of the matrix product's speed.
    public var utilization: Double { medianSeconds > 0 ? flops / medianSeconds / 1e9 / peakGigaflops : 0 }

    /// How the operations of a step are counted; recomputation is not, as is usual for MFU.
    public static let formula =
        "T x (4 N_frozen + 6 N_trained) + 7 L Q D x the sum of S^2 over sequences; N: matrix weights a token meets, without the embedding"

    /// Runs the steps. `tell` hears of long ones as they end.
    public static func run(
        _ settings: Settings, tell: (String) -> Void = { _ in }
    ) throws(MartletError) -> StepBenchmark {
        let started = Stopwatch()
        let source: any WeightSource =
            if let folder = settings.model {
                try Checkpoint(folder: folder)
            } else {
                RandomWeights(
                    .benchmark(settings.preset, layers: settings.layers), seed: 0,
                    busyExpertCount: settings.busyExperts)
            }
        let c = source.configuration, step = try settings.step(c)
        let backend = try settings.compute.makeBackend()
        guard !settings.profiles || backend is CUDABackend else {
            throw MartletError(
                "there is no profile of a step here", in: "--profile",
                because: "\(backend.name) has no clock of its own",
                fix: "leave it out ('martlet bench ops' times ops on the CPU, too), or give --device cuda")
        }
        let memory = DeviceMemory(of: backend)
        let lora = LoRASettings(rank: settings.rank, alpha: Double(2 * settings.rank))
        var modelSettings =
            settings.method == .full ? ModelSettings(.full) : ModelSettings(.lora, adapter: lora)
        modelSettings.quantizesMoments = settings.optim == .adamw8Bit
        let planner = Planner(c, modelSettings, backend)
        let plan = try planner.plan(
            stepTokens: step.tokenCount,
            maximumLength: settings.sequenceLength > 1 ? settings.sequenceLength : step.tokenCount,
            tileTokens: settings.tileTokens,
            limit: settings.memoryLimit.map { max(0, $0 - memory.used) } ?? memory.plannable,
            hostLimit: memory.hostPlannable)
        // Before the model is made: measuring a plan again would take the backend's scratch memory away from it.
        let table = planner.table(plan), planned = table.byteCount, before = DeviceMemory(of: backend).used
        let model = try Model(source, modelSettings, plan, backend)
        try backend.finish()
        let trainedCount = model.parameters.reduce(0) { $0 + $1.value.count }
        let costs = StepCosts(c, step, modelSettings, dtype: backend.computeDType, trainedCount: trainedCount)
        var result = StepBenchmark(
            backend: backend.name,
            model: settings.model ?? "\(settings.preset.rawValue), \(settings.layers) layers, random",
            tokenCount: step.tokenCount, trainedCount: trainedCount, stepSeconds: [], losses: [], flops: costs.flops,
            peakGigaflops: 0,
            plannedByteCount: planned, hostByteCount: table.hostByteCount, memory: table.lines,
            processByteCount: before, peakByteCount: 0, growthByteCount: 0,
            choice:
                "\(settings.optim.rawValue), tiles of \(plan.tileTokens), \(plan.note(layers: c.layerCount)), "
                + (plan.keepsWeights ? "weights stay decoded" : "weights decoded each pass"))
        result.loading = model.loading?.text ?? ""
        result.tiles = (backend as? CUDABackend)?.tileReport?.description ?? ""
        try result.measure(model, step, settings, since: started, tell)
        result.peakGigaflops = try Roofs.gigaflops(of: backend)
        if settings.profiles { try result.takeProfile(model, step, settings.warmup + settings.steps, costs) }
        return result
    }

    /// A step of so many seconds is told at once.
    private static let longStep = 5.0

    private mutating func measure(
        _ model: Model, _ step: PackedStep, _ settings: Settings, since started: Stopwatch, _ tell: (String) -> Void
    ) throws(MartletError) {
        let backend = model.backend, count = settings.warmup + settings.steps
        let meter = (backend as? CUDABackend).flatMap(PowerMeter.init(of:))
        var first = 0, joules: Double?
        for index in 0..<count {
            if index == settings.warmup { joules = meter?.joules }
            let watch = Stopwatch()
            let launches = (backend as? CUDABackend)?.launchCount ?? 0
            let outcome = try model.benchmarkStep(step, index), seconds = watch.seconds
            launchCount = ((backend as? CUDABackend)?.launchCount ?? 0) - launches
            if index == 0 {
                loadMaxOverMean = outcome.meanLoadMaxOverMean
                first = DeviceMemory.peak(of: backend)
                (firstStepSeconds, startSeconds) = (seconds, started.seconds)
            }
            if index >= settings.warmup { stepSeconds.append(seconds) }
            losses.append(outcome.loss)
            peakByteCount = DeviceMemory.peak(of: backend)
            if seconds >= StepBenchmark.longStep {
                tell(
                    "step \(index + 1) of \(count): \(fixed(seconds, 1)) s, loss \(fixed(outcome.loss, 4)), "
                        + "peak \(formatBytes(peakByteCount))")
            }
        }
        growthByteCount = peakByteCount - first
        // The counter moves too seldom for less.
        let seconds = stepSeconds.reduce(0, +)
        if seconds >= 1, let meter, let joules, let end = meter.joules {
            (watts, wattLimit) = ((end - joules) / seconds, meter.limit)
        }
    }

    /// The result for machines.
    public var json: String {
        let object: JSON = [
            "tokens_per_second": .number(tokensPerSecond), "step_seconds": .number(medianSeconds),
            "step_seconds_all": .array(stepSeconds.map(JSON.number)), "losses": .array(losses.map(JSON.number)),
            "trainable_count": .integer(trainedCount), "peak_rss_bytes": .integer(peakByteCount),
            "planned_bytes": .integer(plannedByteCount), "process_bytes": .integer(processByteCount),
            "host_bytes": .integer(hostByteCount), "memory": .array(memory.map(JSON.string)),
            "growth_after_first_step_bytes": .integer(growthByteCount), "tokens": .integer(tokenCount),
            "flops": .number(flops), "mfu": .number(utilization), "mfu_formula": .string(StepBenchmark.formula),
            "gemm_gflops": .number(peakGigaflops), "roof_gflops": .number(roofGigaflops),
            "memory_gbps": .number(memoryGigabytes), "backend": .string(backend),
            "model": .string(model),
            "plan": .string(choice), "load_max_over_mean": .number(loadMaxOverMean),
            "first_step_seconds": .number(firstStepSeconds),
            "start_to_first_step_seconds": .number(startSeconds), "launches": .integer(launchCount),
            "watts": .number(watts), "watt_limit": .number(wattLimit),
            "loading": .string(loading), "tiles": .string(tiles),
            "profile": .array(
                profile.map {
                    [
                        "op": .string($0.name), "calls": .integer($0.count), "ms": .number($0.milliseconds),
                        "roof_ms": .number($0.roofMilliseconds),
                    ]
                }),
            "kernels": .array(
                kernels.map {
                    [
                        "kernel": .string($0.name), "launches": .integer($0.count), "ms": .number($0.milliseconds),
                        "roof_ms": .number($0.roofMilliseconds),
                    ]
                }),
        ]
        return object.text()
    }

    /// The result for people.
    public var description: String {
        let sum = plannedByteCount + processByteCount
        return """
            \(model) on \(backend)
            \(choice)
            step     \(fixed(medianSeconds * 1000, 1)) ms, \(tokenCount) tokens, \(fixed(tokensPerSecond, 0)) tokens/s
            MFU      \(fixed(utilization * 100, 1))% of \(fixed(peakGigaflops, 1)) GFLOP/s (its own matrix product)
                     \(StepBenchmark.formula)
            memory   planned \(formatBytes(plannedByteCount)) + process \(formatBytes(processByteCount)) = \(formatBytes(sum)), \
            measured peak \(formatBytes(peakByteCount)), grown after the first step \(formatBytes(growthByteCount))
            \(memory.map { "         " + $0 }.joined(separator: "\n"))
            trained  \(formatCount(trainedCount)) parameters; last loss \(fixed(losses.last ?? 0, 4))
            routing  the fullest expert has \(fixed(loadMaxOverMean, 1)) times the mean
            start    first step after \(fixed(startSeconds, 1)) s; it took \(fixed(firstStepSeconds * 1000, 1)) ms
            """ + (launchCount > 0 ? "\nlaunches \(launchCount) a step" : "")
                + (watts > 0
                    ? "\npower    \(fixed(watts, 0)) of \(fixed(wattLimit, 0)) W, \(fixed(watts * medianSeconds, 0)) J a step"
                    : "")
                + (loading.isEmpty ? "" : "\nweights  \(loading)") + (tiles.isEmpty ? "" : "\ntiles    \(tiles)")
                + (profile.isEmpty
                    ? ""
                    : "\nprofile  of one more step; % of what \(fixed(roofGigaflops, 0)) GFLOP/s (that product, rested) and "
                        + "\(fixed(memoryGigabytes, 0)) GB/s allow")
                + profile.map { "\n         \($0)" }.joined()
                + (kernels.isEmpty
                    ? ""
                    : "\nkernels  of another step, none begun before the one before it has ended; % of the same, where counted")
                + kernels.map { "\n         \($0)" }.joined()
    }
}

extension StepBenchmark.Settings {
    fileprivate func step(_ c: ModelConfiguration) throws(MartletError) -> PackedStep {
        guard tokenCount >= 2, steps >= 1, warmup >= 0, rank >= 1 else {
            throw MartletError(
                "there is nothing to measure", in: "the options",
                because: "tokens \(tokenCount), steps \(steps), warmup \(warmup), rank \(rank)",
                fix: "give at least 2 tokens, 1 step and rank 1")
        }
        guard tokens.isEmpty || tokens.count >= tokenCount else {
            throw MartletError(
                "too few tokens to measure", in: "--tokens-file", because: "\(tokens.count) of \(tokenCount)",
                fix: "lower --tokens, or give a longer file")
        }
        var random = RandomStream(seed: 0), step = PackedStep()
        let ids =
            tokens.isEmpty
            ? (0..<tokenCount).map { _ in Int32(random.next() % UInt64(c.vocabularyCount)) }
            : Array(tokens.prefix(tokenCount))
        let length = sequenceLength > 1 ? sequenceLength : tokenCount
        for start in stride(from: 0, to: ids.count, by: length) {
            let sequence = Array(ids[start..<min(start + length, ids.count)])
            step.append(sequence, isTrained: sequence.map { _ in true })
        }
        return step
    }

    /// Reads a JSON list of token ids, or a list of such lists, of which the first counts.
    public mutating func readTokens(_ path: String) throws(MartletError) {
        let json = try FileSystem.readJSON(path)
        let list = json.array?.first?.array ?? json.array ?? []
        tokens = list.compactMap { $0.integer.flatMap { Int32(exactly: $0) } }
        guard !tokens.isEmpty, tokens.count == list.count else {
            throw MartletError(
                "the file holds no token ids", in: path, because: "it is not a list of integers", fix: "write [1, 2, 3]"
            )
        }
    }
}

extension Model {
    /// A whole step with the gradient norm and the optimizer; returns what was found.
    func benchmarkStep(_ step: PackedStep, _ index: Int) throws(MartletError) -> StepOutcome {
        let outcome = try trainStep(step, index: index)
        _ = gradientSquares()
        update(OptimizerStep(AdamWSettings(), number: index + 1, learningRate: 1e-4, gradientScale: 1))
        try backend.finish()
        return outcome
    }
}

extension MemoryPlan {
    /// Its rows, one a line.
    fileprivate var lines: [String] {
        aligned(
            (rows.map { ($0, "") } + hostRows.map { ($0, "host: ") }).map { row, place in
                [place + row.name, formatBytes(row.byteCount), row.note ?? ""]
            }, rightAligned: [1])
    }
}

extension StepOutcome {
    fileprivate var meanLoadMaxOverMean: Double {
        let ratios = expertLoad_LE.map { Double(($0.max() ?? 0) * $0.count) / Double(max(1, $0.reduce(0, +))) }
        return ratios.isEmpty ? 0 : ratios.reduce(0, +) / Double(ratios.count)
    }
}

extension ModelConfiguration {
    /// The random models of the benchmark.
    static func benchmark(_ shapes: OpBenchmark.Shapes, layers: Int) -> ModelConfiguration {
        let s = OpSizes(shapes, tokens: 1)
        return ModelConfiguration(
            modelType: "qwen3_moe", hiddenSize: s.H, layerCount: layers, vocabularyCount: s.V, queryHeadCount: s.Q,
            keyValueHeadCount: s.G, headSize: s.D, denseInnerSize: 2 * s.H, ropeTheta: 1_000_000,
            maximumPositions: 40960,
            tiesEmbeddings: false,
            experts: .init(expertCount: s.E, expertsPerToken: s.K, innerSize: s.F, normalizesTopK: true),
            isSparse: [Bool](repeating: true, count: layers))
    }
}
