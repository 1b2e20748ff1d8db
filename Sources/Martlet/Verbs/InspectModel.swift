internal import MartletCore
internal import MartletModel

extension Checkpoint {
    /// The configuration of a model folder, whose weights need not be there.
    static func configuration(of folder: String) throws(MartletError) -> ModelConfiguration {
        let path = FileSystem.join(folder, "config.json")
        do throws(MartletError) {
            return try ModelConfiguration(json: try FileSystem.readJSON(path))
        } catch {
            throw error.location == path ? error : error.at(path)
        }
    }
}

// MARK: Checkpoints

func inspectCheckpoint(_ folder: String) throws(MartletError) -> Inspection {
    let checkpoint = try Checkpoint(folder: folder), c = checkpoint.configuration
    var missing: [String] = []
    for weight in checkpoint.weights {
        do throws(MartletError) { _ = try checkpoint.parts(of: weight) } catch {
            missing.append("\(weight.name): \(error.problem) (\(error.reason ?? ""))")
        }
    }
    let problems =
        missing + checkpoint.unexpectedTensors.map { "\($0): no weight of this model" }
        + checkpoint.nonFiniteTensors.map { "\($0): holds NaN or infinity" }
    let groups = c.parameterGroups, dtypes = storedDTypes(checkpoint)
    var lines = [["model", c.summary], ["attention", c.attentionSummary]]
    if let experts = c.expertsSummary { lines.append(["experts", experts]) }
    lines.append(["vocabulary", "\(c.vocabularyCount), embedding and head \(c.tiesEmbeddings ? "tied" : "separate")"])
    lines.append(["positions", "\(c.maximumPositions), rope theta \(fixed(c.ropeTheta, 0))"])
    lines.append(["stored as", dtypes.map { "\($0.key) \(formatBytes($0.value))" }.joined(separator: ", ")])
    lines.append([
        "parameters", "\(formatCount(c.parameterCount)), \(formatCount(c.activeParameterCount)) active a token",
    ])
    lines += groups.map { ["  \($0.name)", formatCount($0.count)] }
    let verdict =
        problems.isEmpty
        ? ["every weight is there, of the right shape, and finite"]
        : ["\(problems.count) problems:"] + problems.prefix(50).map { "  " + $0 }
    return Inspection(
        description: (aligned(lines) + verdict).joined(separator: "\n"),
        json: checkpointJSON(checkpoint, groups, dtypes, problems).text(), problems: problems)
}

private func checkpointJSON(
    _ checkpoint: Checkpoint, _ groups: [(name: String, count: Int)], _ dtypes: [(key: String, value: Int)],
    _ problems: [String]
) -> JSON {
    var parameters = JSONObject(), stored = JSONObject()
    for group in groups { parameters[group.name] = .integer(group.count) }
    for dtype in dtypes { stored[dtype.key] = .integer(dtype.value) }
    let c = checkpoint.configuration
    return [
        "kind": "checkpoint", "config": checkpoint.configJSON, "parameters": .integer(c.parameterCount),
        "active_parameters": .integer(c.activeParameterCount), "parameters_by_group": .object(parameters),
        "bytes_by_dtype": .object(stored), "tensors": .integer(checkpoint.tensors.tensors.count),
        "problems": .array(problems.map(JSON.string)),
    ]
}

private func storedDTypes(_ checkpoint: Checkpoint) -> [(key: String, value: Int)] {
    var bytes: [String: Int] = [:]
    for tensor in checkpoint.tensors.tensors { bytes[tensor.dtypeName, default: 0] += tensor.byteCount }
    return bytes.sorted { ($1.value, $0.key) < ($0.value, $1.key) }
}

extension ModelConfiguration {
    /// Parameters by group, in the order of the model.
    package var parameterGroups: [(name: String, count: Int)] {
        var groups: [(name: String, count: Int)] = []
        for weight in weights {
            let count = shape(of: weight).count
            if let i = groups.firstIndex(where: { $0.name == weight.group }) {
                groups[i].count += count
            } else {
                groups.append((weight.group, count))
            }
        }
        return groups
    }

    /// Parameters that one token meets: everything but the experts it is not sent to.
    package var activeParameterCount: Int {
        weights.reduce(0) { sum, weight in
            let count = shape(of: weight).count
            guard weight.isExperts, let experts else { return sum + count }
            return sum + count / experts.expertCount * experts.expertsPerToken
        }
    }

    fileprivate var summary: String {
        "\(modelType): \(layerCount) layers of width \(hiddenSize)"
            + (isSparse.contains(false) && isSparse.contains(true)
                ? " (\(isSparse.count { $0 }) of them mixtures of experts)" : "")
    }

    fileprivate var attentionSummary: String {
        "\(queryHeadCount) query heads, \(keyValueHeadCount) key/value heads of \(headSize)"
    }

    fileprivate var expertsSummary: String? {
        experts.map {
            "\($0.expertCount) of inner size \($0.innerSize), \($0.expertsPerToken) a token"
                + ($0.normalizesTopK ? ", weights normalised" : "")
        }
    }
}

// MARK: Adapters

func inspectAdapter(_ folder: String, model: String?) throws(MartletError) -> Inspection {
    let config = try FileSystem.readJSON(FileSystem.join(folder, "adapter_config.json"))
    let file = try SafeTensorsFile(FileSystem.join(folder, "adapter_model.safetensors"))
    let base = config["base_model_name_or_path"]?.string ?? ""
    let known = model ?? (FileSystem.exists(FileSystem.join(base, "config.json")) ? base : nil)
    var problems = file.tensors.filter(\.hasNonFinite).map { "\($0.name): holds NaN or infinity" }
    var fits = "not checked: give --model FOLDER to check it against its base model"
    if let known {
        do throws(MartletError) {
            let adapter = try Adapter(folder: folder, for: try Checkpoint.configuration(of: known))
            fits = "\(known): \(adapter.matrices.count) weights adapted"
        } catch {
            fits = "it does not fit \(known)"
            problems.append("\(error.problem): \(error.reason ?? "")")
        }
    }
    let modules = config["target_modules"]?.array?.compactMap(\.string) ?? []
    let parameters = config["target_parameters"]?.array?.compactMap(\.string) ?? []
    let isPerExpert = file.tensors.contains { $0.name.firstRange(of: ".experts.0.") != nil }
    let hasExperts = isPerExpert || file.tensors.contains { $0.name.firstRange(of: ".experts.") != nil }
    let layout = isPerExpert ? "per_expert" : hasExperts ? "fused" : "no experts"
    let count = file.tensors.reduce(0) { $0 + $1.count }
    let rank = config["r"]?.integer ?? 0, alpha = config["lora_alpha"]?.number ?? 0
    let lines = [
        [
            "adapter",
            "LoRA r \(rank), alpha \(fixed(alpha, alpha == alpha.rounded() ? 0 : 2))"
                + (config["use_rslora"]?.bool == true ? ", rank-stabilised" : ""),
        ],
        ["base model", base.isEmpty ? "not recorded" : base], ["layout", layout],
        ["targets", (modules + parameters).joined(separator: ", ")],
        [
            "stored as",
            "\(file.tensors.count) tensors, \(Set(file.tensors.map(\.dtypeName)).sorted().joined(separator: ", "))",
        ],
        ["parameters", formatCount(count)], ["fits", fits],
    ]
    let json: JSON = [
        "kind": "adapter", "config": config, "layout": .string(layout), "tensors": .integer(file.tensors.count),
        "parameters": .integer(count), "problems": .array(problems.map(JSON.string)),
    ]
    return Inspection(
        description: (aligned(lines) + problems.prefix(50).map { "problem: \($0)" }).joined(separator: "\n"),
        json: json.text(), problems: problems)
}
