internal import MartletCore
internal import MartletData
internal import MartletModel

/// What a run would do and need, known before it starts.
public struct RunPlan: Sendable, CustomStringConvertible {
    /// The memory table of the run's arena, without its sum.
    public var memory: [TrainingOverview.Row]
    /// Bytes of the arena, the sum of those rows.
    public var arenaByteCount: Int
    /// Bytes that this process has resident with tokenizer and dataset loaded, or that are in use on the GPU; measured.
    public var processByteCount: Int
    /// What those are.
    public var process: TrainingOverview.Row
    /// The backend, and why not a GPU.
    public var device: TrainingOverview.Row
    /// Bytes that the whole process may take.
    public var limitByteCount: Int
    /// Bytes of the checkpoint, which is mapped: pages that the system takes back when it needs them.
    public var mappedByteCount: Int
    /// What will be trained.
    public var trainable: TrainableSet
    /// What the dataset turned out to be.
    public var data: [TrainingOverview.Row]
    /// Steps of the run.
    public var totalSteps: Int
    /// Steps of one pass over the dataset.
    public var stepsPerEpoch: Int
    /// Bytes of host memory beside the device's; it is pinned.
    public var hostByteCount: Int
    /// How the plan answers the memory there is.
    public var choices: [String]

    init(_ recipe: Recipe, _ run: Assembly.Prepared) throws(MartletError) {
        memory = run.memory.rows.map { .init($0.name, formatBytes($0.byteCount), note: $0.note) }
        hostByteCount = run.memory.hostByteCount
        arenaByteCount = run.memory.byteCount
        processByteCount = run.used
        let used = DeviceMemory.name(on: run.backend)
        process = .init(used.name, formatBytes(run.used), note: used.note)
        device = .init("computes on", run.backend.name, note: run.deviceReason)
        limitByteCount = run.limit
        mappedByteCount = run.checkpoint.tensors.tensors.reduce(0) { $0 + $1.byteCount }
        trainable = try TrainableSet(run.parameters, totalCount: run.totalParameterCount)
        data = run.data.rows
        stepsPerEpoch = run.data.training.stepsPerEpoch
        totalSteps = try Trainer.totalSteps(recipe, stepsPerEpoch: stepsPerEpoch)
        let layers = run.checkpoint.configuration.layerCount, plan = run.plan
        choices =
            [
                "a step of at most \(plan.stepTokens) tokens goes through each layer in \(plan.tileCount) tiles of \(plan.tileTokens)",
                plan.keptLayers == layers
                    ? "every layer keeps its activations: there is room"
                    : "for lack of room " + plan.note(layers: layers),
                plan.keepsWeights
                    ? "all layers stay decoded in memory: there is room"
                    : "layers are decoded from the mapped files in each pass: all of them at once do not fit",
            ] + run.remarks
        choices += run.memory.hostRows.map {
            "in host memory: \($0.name), \(formatBytes($0.byteCount)): \($0.note ?? "")"
        }
    }

    /// The result for people.
    public var description: String {
        let sum = arenaByteCount + processByteCount
        var rows = memory.map { [$0.name, $0.value, $0.note ?? ""] }
        rows.append([process.name, process.value, process.note ?? ""])
        rows.append(["sum", formatBytes(sum), "of \(formatBytes(limitByteCount)) that may be planned for"])
        if hostByteCount > 0 {
            rows.append(["in host memory", formatBytes(hostByteCount), "pinned; not in the sum"])
        }
        rows.append([
            "checkpoint, mapped", formatBytes(mappedByteCount),
            "file cache: the system takes it back when it needs room",
        ])
        return
            ([[device.name, device.value, device.note ?? ""].joined(separator: "  "), ""]
            + aligned(rows, rightAligned: [1]) + [""] + choices.map { "- " + $0 } + [""]
            + aligned(data.map { [$0.name, $0.value, $0.note ?? ""] }) + [""] + trainable.lines
            + ["\(totalSteps) steps, \(stepsPerEpoch) a pass over the dataset"]).joined(separator: "\n")
    }

    /// The result for machines.
    public var json: String {
        let object: JSON = [
            "arena_bytes": .integer(arenaByteCount), "process_bytes": .integer(processByteCount),
            "host_bytes": .integer(hostByteCount), "device": .string(device.value),
            "limit_bytes": .integer(limitByteCount),
            "checkpoint_bytes": .integer(mappedByteCount),
            "memory": .array(
                memory.map {
                    ["name": .string($0.name), "size": .string($0.value), "note": $0.note.map(JSON.string) ?? .null]
                }),
            "choices": .array(choices.map(JSON.string)), "trainable_parameters": .integer(trainable.parameterCount),
            "trainable_tensors": .integer(trainable.tensorCount), "total_parameters": .integer(trainable.totalCount),
            "steps": .integer(totalSteps), "steps_per_epoch": .integer(stepsPerEpoch),
        ]
        return object.text()
    }
}

extension TrainableSet {
    /// The set in lines, as told before the first step.
    public var lines: [String] {
        aligned(
            groups.map { ["trained: \($0.name)", "\($0.tensorCount) tensors", formatCount($0.parameterCount)] },
            rightAligned: [1, 2])
            + [
                "trained in all: \(formatCount(parameterCount)) of \(formatCount(totalCount)) parameters (\(fixed(share * 100, share < 0.1 ? 2 : 1))%)"
            ]
    }
}
