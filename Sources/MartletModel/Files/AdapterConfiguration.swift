internal import MartletCore

/// adapter_config.json as PEFT writes it: what a reader must know of it.
struct AdapterConfiguration {
    var settings: AdapterSettings
    var targetParameters: [String]
    /// `peft_version` as (major, minor).
    var version: (Int, Int)?
    private var rankPattern: [(suffix: String, value: Double)]
    private var alphaPattern: [(suffix: String, value: Double)]

    init(_ json: JSON) throws(MartletError) {
        guard json.object != nil else { throw wrong("", json, "an object") }
        try refuseUnsupported(json)
        guard let rank = json["r"]?.integer, (1...65536).contains(rank) else {
            throw wrong("r", json["r"], "a whole number from 1 to 65536")
        }
        guard let alpha = json["lora_alpha"]?.number, alpha.isFinite, alpha > 0, alpha < 1e9 else {
            throw wrong("lora_alpha", json["lora_alpha"], "a number above 0")
        }
        let dropout = json["lora_dropout"] ?? 0.0
        guard let probability = dropout.number, (0..<1).contains(probability) else {
            throw wrong("lora_dropout", dropout, "a number from 0 up to and without 1")
        }
        guard let usesRSLoRA = (json["use_rslora"] ?? false).bool else {
            throw wrong("use_rslora", json["use_rslora"], "true or false")
        }
        settings = AdapterSettings(
            rank: rank, alpha: alpha, usesRSLoRA: usesRSLoRA, dropout: probability,
            baseModel: json["base_model_name_or_path"]?.string ?? "")
        targetParameters = json["target_parameters"]?.array?.compactMap(\.string) ?? []
        let digits = json["peft_version"]?.string?.split(separator: ".").prefix(2).map { Int($0) ?? 0 } ?? []
        version = digits.count == 2 ? (digits[0], digits[1]) : nil
        rankPattern = try pattern(json, "rank_pattern")
        alphaPattern = try pattern(json, "alpha_pattern")
    }

    /// The rank that the configuration gives a module.
    func rank(of module: String) -> Int {
        rankPattern.first { matches(module, $0.suffix) }.flatMap { Int(exactly: $0.value) } ?? settings.rank
    }

    /// The scale that the configuration gives a module, relative to the adapter's scale.
    func relativeScale(of module: String) -> Float {
        var own = settings
        own.alpha = alphaPattern.first { matches(module, $0.suffix) }?.value ?? settings.alpha
        return Float(own.scale(rank: rank(of: module)) / settings.scale(rank: settings.rank))
    }

    private func matches(_ module: String, _ suffix: String) -> Bool {
        module == suffix || module.hasSuffix("." + suffix)
    }
}

private func wrong(_ key: String, _ value: JSON?, _ wanted: String) -> MartletError {
    MartletError(
        "adapter_config.json has a wrong value", in: key.isEmpty ? nil : "key \"\(key)\"",
        because: "it is \(value.map { String($0.text().prefix(60)) } ?? "missing"); it must be \(wanted)",
        fix: "correct it, or save the adapter again")
}

private func refuseUnsupported(_ json: JSON) throws(MartletError) {
    func unsupported(_ key: String, _ value: JSON, _ supported: String) -> MartletError {
        MartletError(
            "the adapter uses something that is not supported", in: "key \"\(key)\"",
            because: "it is \(value.text().prefix(60)); \(supported)", fix: "train or save the adapter without it")
    }
    guard json["peft_type"]?.string == "LORA" else {
        throw unsupported("peft_type", json["peft_type"] ?? .null, "supported: \"LORA\"")
    }
    if let bias = json["bias"], !bias.isNull, bias != "none" { throw unsupported("bias", bias, "supported: \"none\"") }
    let mustBeOff = [
        "use_dora", "lora_bias", "fan_in_fan_out", "modules_to_save", "layer_replication", "trainable_token_indices",
        "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config",
        "velora_config",
    ]
    for key in mustBeOff {
        guard let value = json[key], !value.isNull, value != false, value != [], value != [:] else { continue }
        throw unsupported(key, value, "supported: none, false or null")
    }
    // These initialisations change the base weights, so that the adapter alone does not say what was trained.
    let changesBase = ["pissa", "olora", "corda", "loftq", "lora_ga"]
    if let name = json["init_lora_weights"]?.string, changesBase.contains(where: { name.hasPrefix($0) }) {
        throw unsupported("init_lora_weights", .string(name), "it changes the base model's weights")
    }
}

/// A pattern of PEFT is a regular expression for the end of a module's name; plain names are understood, others refused.
private func pattern(_ json: JSON, _ key: String) throws(MartletError) -> [(suffix: String, value: Double)] {
    guard let value = json[key], !value.isNull else { return [] }
    guard let object = value.object else { throw wrong(key, value, "an object") }
    var entries: [(suffix: String, value: Double)] = []
    for (expression, value) in object {
        guard let number = value.number, number > 0, number < 1e9, key == "alpha_pattern" || number == number.rounded()
        else {
            throw wrong("\(key).\(expression)", value, "a number above 0")
        }
        var rest = Substring(expression)
        for start in ["^", ".*\\.", ".*."] where rest.hasPrefix(start) { rest = rest.dropFirst(start.count) }
        if rest.hasSuffix("$") { rest = rest.dropLast() }
        var plain = "", isEscaped = false, isRegular = false
        for character in rest {
            if character == "\\", !isEscaped { isEscaped = true; continue }
            if isEscaped ? character != "." : "^$*+?()[]{}|".contains(character) { isRegular = true }
            plain.append(character)
            isEscaped = false
        }
        guard !isRegular, !isEscaped, !plain.isEmpty else {
            throw MartletError(
                "a pattern of the adapter cannot be read", in: "key \"\(key)\"",
                because: "'\(expression)' is a regular expression; only plain ends of module names are understood",
                fix: "write the names of the modules there instead")
        }
        entries.append((plain, number))
    }
    return entries
}

extension AdapterSettings {
    /// adapter_config.json for PEFT 0.21 and vLLM.
    func json(targetModules: [String], targetParameters: [String]) -> JSON {
        let wholeAlpha = Int(exactly: alpha)
        return [
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": .string(baseModel),
            "revision": .null,
            "inference_mode": true, "r": .integer(rank),
            "lora_alpha": wholeAlpha.map { .integer($0) } ?? .number(alpha),
            "lora_dropout": .number(dropout), "use_rslora": .bool(usesRSLoRA), "use_dora": false, "lora_bias": false,
            "bias": "none", "fan_in_fan_out": false, "init_lora_weights": true,
            "target_modules": .array(targetModules.map { .string($0) }),
            "target_parameters": targetParameters.isEmpty ? .null : .array(targetParameters.map { .string($0) }),
            "exclude_modules": .null, "modules_to_save": .null, "layers_to_transform": .null, "layers_pattern": .null,
            "layer_replication": .null, "rank_pattern": [:], "alpha_pattern": [:], "auto_mapping": .null,
            "trainable_token_indices": .null, "peft_version": "0.21.2",
        ]
    }
}
