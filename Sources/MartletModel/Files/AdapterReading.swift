package import MartletCore

extension Adapter {
    /// The order of the columns of a fused B on disk.
    package enum FusedColumns: String, Sendable, CaseIterable {
        /// PEFT and vLLM: rank-major, the experts fastest.
        case rankMajor
        /// Files trained by tools that keep each expert's columns together; nothing in such a file says so.
        case expertMajor
    }

    /// Reads an adapter in PEFT's format, fused or per expert. Every key of the file must be understood.
    package init(
        folder: String, for configuration: ModelConfiguration, fusedColumns: FusedColumns = .rankMajor
    ) throws(MartletError) {
        let configPath = FileSystem.join(folder, "adapter_config.json")
        guard FileSystem.exists(configPath) else {
            throw MartletError(
                "the folder holds no adapter", in: folder, because: "there is no adapter_config.json",
                fix: "give the folder that holds adapter_config.json and adapter_model.safetensors")
        }
        let json = try FileSystem.readJSON(configPath), config: AdapterConfiguration
        do throws(MartletError) {
            config = try AdapterConfiguration(json)
        } catch {
            throw error.at(configPath)
        }
        let file = try SafeTensorsFile(FileSystem.join(folder, "adapter_model.safetensors"))
        do throws(MartletError) {
            var reader = try AdapterReader(file, config, configuration, fusedColumns)
            self.init(settings: config.settings, matrices: try reader.matrices())
        } catch {
            throw error.at(file.path)
        }
    }
}

/// A and B of one module, as they stand in the file.
private struct StoredPair {
    var module: String
    var a: HostTensor
    var b: HostTensor
}

private struct AdapterReader {
    private let names: AdapterNames
    private let config: AdapterConfiguration
    private let fusedColumns: Adapter.FusedColumns
    /// By module; what has been used is taken out.
    private var pairs: [String: StoredPair] = [:]

    init(
        _ file: SafeTensorsFile, _ config: AdapterConfiguration, _ configuration: ModelConfiguration,
        _ fusedColumns: Adapter.FusedColumns
    ) throws(MartletError) {
        names = try AdapterNames(configuration)
        self.config = config
        self.fusedColumns = fusedColumns
        pairs = try storedPairs(file)
    }

    mutating func matrices() throws(MartletError) -> [Weight: LoRAMatrices] {
        var matrices: [Weight: LoRAMatrices] = [:]
        for weight in names.weights {
            if weight.isExperts {
                matrices[weight] = try separate(weight)
            } else if let pair = pairs.removeValue(forKey: names.module(of: weight)) {
                matrices[weight] = try projection(weight, pair)
            }
        }
        try fusedExperts(into: &matrices)
        if let module = pairs.keys.min() { throw unknown(module) }
        guard !matrices.isEmpty else {
            throw MartletError(
                "the adapter is empty", because: "the file holds no pair of A and B", fix: "save the adapter again")
        }
        return matrices
    }

    private func projection(_ weight: Weight, _ pair: StoredPair) throws(MartletError) -> LoRAMatrices {
        let shape = names.configuration.shape(of: weight)
        let rank = config.rank(of: pair.module)
        try require(pair.a, [rank, shape[1]])
        try require(pair.b, [shape[0], rank])
        return LoRAMatrices(
            a: try values(pair.a), aShape: pair.a.shape, b: try scaled(values(pair.b), pair.module),
            bShape: pair.b.shape)
    }

    // MARK: One pair an expert and projection

    /// Gate and up with the same A become one pair; with different ones, one of twice the rank with B block-diagonal.
    private mutating func separate(_ weight: Weight) throws(MartletError) -> LoRAMatrices? {
        let parts = names.separateParts(of: weight), shape = names.configuration.shape(of: weight)
        guard parts.contains(where: { pairs[names.moduleName($0)] != nil }) else { return nil }
        var a: [[Float]] = [], b: [[Float]] = [], rank: Int?
        for part in parts {
            let module = names.moduleName(part)
            guard let pair = pairs.removeValue(forKey: module) else {
                throw missing(
                    "\(AdapterNames.prefix)\(module).lora_A.weight",
                    "other experts and projections of this layer are adapted")
            }
            let own = config.rank(of: module)
            if let rank, own != rank {
                throw MartletError(
                    "the ranks of a layer's experts differ", in: "module '\(module)'",
                    because: "it has \(own), others \(rank)",
                    fix: "train all experts with one rank")
            }
            rank = own
            try require(pair.a, [own, part.columnCount])
            try require(pair.b, [part.rowCount, own])
            a.append(try values(pair.a))
            b.append(try scaled(values(pair.b), module))
        }
        let projections = parts.count / shape[0], r = rank ?? 0
        let sharesA = parts.indices.allSatisfy { a[$0] == a[$0 / projections * projections] }
        let blocks = sharesA ? 1 : projections
        var allA: [Float] = [], allB: [Float] = []
        for (i, part) in parts.enumerated() {
            let block = sharesA ? 0 : i % projections
            if block == i % projections { allA += a[i] }
            for row in 0..<part.rowCount {
                for k in 0..<blocks {
                    if k == block { allB += b[i][row * r..<(row + 1) * r] } else { allB += repeatElement(0, count: r) }
                }
            }
        }
        return LoRAMatrices(
            a: allA, aShape: [shape[0], blocks * r, shape[2]], b: allB, bShape: [shape[0], shape[1], blocks * r])
    }

    // MARK: One pair for all experts of a layer

    private mutating func fusedExperts(into matrices: inout [Weight: LoRAMatrices]) throws(MartletError) {
        var found: [(layer: Int, isInner: Bool, hasInner: Bool, pair: StoredPair)] = []
        for layer in 0..<names.configuration.layerCount {
            guard let module = names.expertsModule(of: layer) else { continue }
            let inner = pairs.removeValue(forKey: module + ".base_layer"), outer = pairs.removeValue(forKey: module)
            if let inner { found.append((layer, true, true, inner)) }
            if let outer { found.append((layer, false, inner != nil, outer)) }
        }
        let isOld = config.version.map { $0 < (0, 19) } ?? false
        let prefersSwapped =
            isOld
            || found.contains { found in
                let fits = [Weight.expertsGateUp(found.layer), .expertsDown(found.layer)]
                return !fits.contains { fit(found.pair, $0, isSwapped: false) }
                    && fits.contains { fit(found.pair, $0, isSwapped: true) }
            }
        for (layer, isInner, hasInner, pair) in found {
            let target = config.targetParameters.filter { $0.hasSuffix("gate_up_proj") }
            let namesOnlyDown = target.isEmpty && !config.targetParameters.isEmpty
            let likely: Weight = isInner || (!hasInner && !namesOnlyDown) ? .expertsGateUp(layer) : .expertsDown(layer)
            let other: Weight = likely == .expertsGateUp(layer) ? .expertsDown(layer) : .expertsGateUp(layer)
            let choices = [likely, other].flatMap { weight in [prefersSwapped, !prefersSwapped].map { (weight, $0) } }
            guard let (weight, isSwapped) = choices.first(where: { fit(pair, $0.0, isSwapped: $0.1) }) else {
                throw misfit(pair, likely)
            }
            guard matrices.updateValue(try fused(weight, pair, isSwapped: isSwapped), forKey: weight) == nil else {
                throw MartletError(
                    "two pairs are for the same weight", in: "module '\(pair.module)'",
                    because: "the experts' \(names.fused(of: weight).parameter) of layer \(layer) has another pair",
                    fix: "save the adapter again, in one layout")
            }
        }
    }

    /// PEFT before 0.19 took stored [E, O, I] for [E, I, O]: its A has O columns and its B has I rows.
    private func fit(_ pair: StoredPair, _ weight: Weight, isSwapped: Bool) -> Bool {
        let shape = names.configuration.shape(of: weight), columns = shape[0] * rank(pair, weight)
        let (rowsOfB, columnsOfA) = isSwapped ? (shape[2], shape[1]) : (shape[1], shape[2])
        return pair.a.shape == [columns, columnsOfA] && pair.b.shape == [rowsOfB, columns]
    }

    private func rank(_ pair: StoredPair, _ weight: Weight) -> Int { config.rank(of: parameterName(weight)) }

    private func parameterName(_ weight: Weight) -> String {
        let (module, parameter) = names.fused(of: weight)
        return module + "." + parameter
    }

    private func fused(_ weight: Weight, _ pair: StoredPair, isSwapped: Bool) throws(MartletError) -> LoRAMatrices {
        let shape = names.configuration.shape(of: weight)
        let e = shape[0], o = shape[1], i = shape[2], r = rank(pair, weight)
        let storedA = try values(pair.a), storedB = try values(pair.b)
        /// Columns of B brought to [rows, e, r].
        func column(_ expert: Int, _ k: Int) -> Int { fusedColumns == .rankMajor ? k * e + expert : expert * r + k }
        var a = storedA, b = [Float](repeating: 0, count: e * o * r)
        for expert in 0..<e {
            for k in 0..<r {
                if isSwapped {
                    for row in 0..<o { b[(expert * o + row) * r + k] = storedA[(expert * r + k) * o + row] }
                } else {
                    for row in 0..<o { b[(expert * o + row) * r + k] = storedB[row * r * e + column(expert, k)] }
                }
            }
        }
        if isSwapped {
            a = [Float](repeating: 0, count: e * r * i)
            for expert in 0..<e {
                for k in 0..<r {
                    for input in 0..<i { a[(expert * r + k) * i + input] = storedB[input * r * e + column(expert, k)] }
                }
            }
        }
        return LoRAMatrices(a: a, aShape: [e, r, i], b: scaled(b, parameterName(weight)), bShape: [e, o, r])
    }

    // MARK: Values

    private func values(_ tensor: HostTensor) throws(MartletError) -> [Float] {
        guard !tensor.hasNonFinite else {
            throw MartletError(
                "the adapter is not a number", in: "tensor '\(tensor.name)'", because: "it holds NaN or infinity",
                fix: "use an earlier checkpoint of the training")
        }
        return try tensor.floats()
    }

    private func scaled(_ b: [Float], _ module: String) -> [Float] {
        let factor = config.relativeScale(of: module)
        return factor == 1 ? b : b.map { $0 * factor }
    }

    // MARK: Errors

    private func require(_ tensor: HostTensor, _ shape: [Int]) throws(MartletError) {
        guard tensor.shape != shape else { return }
        throw MartletError(
            "the adapter does not fit the model", in: "tensor '\(tensor.name)'",
            because: "it is \(tensor.shape); this model and r = \(config.settings.rank) need \(shape)",
            fix: "use the base model that the adapter was trained on")
    }

    private func misfit(_ pair: StoredPair, _ weight: Weight) -> MartletError {
        let shape = names.configuration.shape(of: weight), columns = shape[0] * rank(pair, weight)
        return MartletError(
            "the adapter does not fit the model", in: "tensor '\(pair.a.name)'",
            because: "A is \(pair.a.shape) and B \(pair.b.shape); this model and r = \(config.settings.rank) need"
                + " \([columns, shape[2]]) and \([shape[1], columns])",
            fix: "use the base model that the adapter was trained on")
    }

    private func unknown(_ module: String) -> MartletError {
        let known = names.weights.map(names.module)
        let isRouter = module.hasSuffix("mlp.gate")
        let guess = closestMatch(to: module, among: known)
        return MartletError(
            isRouter
                ? "adapters on the router are not supported" : "the adapter has a pair for a module that is unknown",
            in: "tensor '\(pairs[module]?.a.name ?? module)'",
            because:
                "this model has adapters for: \(Set(names.weights.map(names.kind)).sorted().joined(separator: ", "))",
            fix: isRouter
                ? "train without the router as a target"
                : guess.map { "did you mean '\($0)'?" }
                    ?? "use the base model that the adapter was trained on")
    }
}

private func missing(_ key: String, _ reason: String) -> MartletError {
    MartletError(
        "the adapter lacks a tensor", in: "tensor '\(key)'", because: reason, fix: "save the adapter again, completely")
}

/// Pairs A with B; every key must belong to a pair.
private func storedPairs(_ file: SafeTensorsFile) throws(MartletError) -> [String: StoredPair] {
    var sides: [String: (a: HostTensor?, b: HostTensor?)] = [:]
    for tensor in file.tensors {
        guard let (module, isA) = moduleAndSide(tensor.name) else {
            let isEmbedding = tensor.name.contains("lora_embedding_"), isPair = tensor.name.contains(".lora_")
            throw MartletError(
                isEmbedding
                    ? "adapters on embeddings are not supported"
                    : isPair
                        ? "the adapter has a key that cannot be read"
                        : "the adapter holds a whole weight, which is not supported",
                in: "tensor '\(tensor.name)'",
                because: "keys are \(AdapterNames.prefix)MODULE.lora_A.weight and .lora_B.weight",
                fix: "train with LoRA pairs only: no modules_to_save, no DoRA, no embeddings")
        }
        if isA { sides[module, default: (nil, nil)].a = tensor } else { sides[module, default: (nil, nil)].b = tensor }
    }
    var pairs: [String: StoredPair] = [:]
    for (module, side) in sides.sorted(by: { $0.key < $1.key }) {
        guard let a = side.a, let b = side.b else {
            let key = "\(AdapterNames.prefix)\(module).lora_\(side.a == nil ? "A" : "B").weight"
            throw missing(key, "there is only '\(side.a?.name ?? side.b?.name ?? "")'")
        }
        pairs[module] = StoredPair(module: module, a: a, b: b)
    }
    return pairs
}

/// "base_model.model.MODULE.lora_A.weight", with or without PEFT's default adapter name in it.
private func moduleAndSide(_ key: String) -> (module: String, isA: Bool)? {
    guard key.hasPrefix(AdapterNames.prefix) else { return nil }
    let rest = key.dropFirst(AdapterNames.prefix.count)
    for (side, isA) in [("A", true), ("B", false)] {
        for ending in [".lora_\(side).weight", ".lora_\(side).default.weight"] where rest.hasSuffix(ending) {
            return (String(rest.dropLast(ending.count)), isA)
        }
    }
    return nil
}
