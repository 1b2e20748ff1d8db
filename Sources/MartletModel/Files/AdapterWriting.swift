package import MartletCore

extension Adapter {
    /// How the experts' matrices are laid out on disk.
    package enum Layout: String, Sendable, CaseIterable {
        /// One pair for all experts of a layer, as PEFT writes (and vLLM for models with fused experts).
        case fused
        /// One pair an expert and projection, as vLLM expects for Qwen3-MoE; PEFT reads it too.
        case perExpert
    }

    /// Writes adapter_config.json and adapter_model.safetensors into the folder, which is made if need be.
    package func write(
        to folder: String, for configuration: ModelConfiguration, layout: Layout = .fused, dtype: DType = .float32
    ) throws(MartletError) {
        var written = withUniformRank()
        if layout == .perExpert { written.completeExperts(configuration) }
        let names = try AdapterNames(configuration)
        var tensors: [String: (description: TensorDescription, values: [Float])] = [:]
        func put(_ module: String, _ pair: LoRAMatrices) {
            for (side, values, shape) in [("A", pair.a, pair.aShape), ("B", pair.b, pair.bShape)] {
                let key = "\(AdapterNames.prefix)\(module).lora_\(side).weight"
                tensors[key] = (TensorDescription(key, dtype, shape), values)
            }
        }
        for (weight, pair) in written.matrices {
            try pair.checkFit(weight, configuration)
            if !weight.isExperts {
                put(names.module(of: weight), pair)
            } else if layout == .perExpert {
                for (module, part) in separatePairs(pair, names.separateParts(of: weight), names) { put(module, part) }
            } else {
                put(fusedModule(weight, names), pair.fusedForDisk)
            }
        }
        let (modules, parameters) = written.targets(names, layout)
        try FileSystem.makeFolder(folder)
        try SafeTensorsWriter.write(
            tensors.values.map(\.description).sorted { $0.name < $1.name },
            to: FileSystem.join(folder, "adapter_model.safetensors")
        ) { (tensor, sink) throws(MartletError) in
            try sink.write(tensors[tensor.name]?.values ?? [])
        }
        let json = written.settings(for: layout).json(targetModules: modules, targetParameters: parameters)
        try AtomicFile.write(json.text(.pretty) + "\n", to: FileSystem.join(folder, "adapter_config.json"))
    }

    /// One rank for all pairs (vLLM knows only one), the scale kept by raising alpha with it.
    private func withUniformRank() -> Adapter {
        let rank = max(matrices.values.map(\.rank).max() ?? 0, settings.rank)
        var adapter = self
        let ratio = Double(rank) / Double(settings.rank)
        adapter.settings.alpha = settings.alpha * (settings.usesRSLoRA ? ratio.squareRoot() : ratio)
        adapter.settings.rank = rank
        adapter.matrices = matrices.mapValues { $0.padded(to: rank) }
        return adapter
    }

    /// PEFT loses separate pairs of gate and up if there are none of down; ones of zero change nothing.
    private mutating func completeExperts(_ configuration: ModelConfiguration) {
        for case .expertsGateUp(let layer) in matrices.keys where matrices[.expertsDown(layer)] == nil {
            let shape = configuration.shape(of: .expertsDown(layer))
            let e = shape[0], o = shape[1], i = shape[2], r = settings.rank
            matrices[.expertsDown(layer)] = LoRAMatrices(
                a: [Float](repeating: 0, count: e * r * i), aShape: [e, r, i],
                b: [Float](repeating: 0, count: e * o * r), bShape: [e, o, r])
        }
    }

    /// PEFT fuses separate pairs to twice the rank and alpha, which rsLoRA would scale by sqrt(2) too much; alpha / rank says
    /// the same without it.
    private func settings(for layout: Layout) -> AdapterSettings {
        guard layout == .perExpert, settings.usesRSLoRA else { return settings }
        var plain = settings
        plain.usesRSLoRA = false
        plain.alpha = settings.scale(rank: settings.rank) * Double(settings.rank)
        return plain
    }

    /// PEFT nests its wrappers: of two targets gate_up is the inner one, which its key says with "base_layer".
    private func fusedModule(_ weight: Weight, _ names: AdapterNames) -> String {
        let module = names.fused(of: weight).module
        if case .expertsGateUp(let layer) = weight, matrices[.expertsDown(layer)] != nil {
            return module + ".base_layer"
        }
        return module
    }

    private func separatePairs(
        _ pair: LoRAMatrices, _ parts: [WeightPart], _ names: AdapterNames
    ) -> [(module: String, pair: LoRAMatrices)] {
        let r = pair.rank, i = pair.inputCount, o = pair.outputCount
        return parts.map { part in
            let expert = part.firstRow / o
            let a = Array(pair.a[expert * r * i..<(expert + 1) * r * i])
            let b = Array(pair.b[part.rows.lowerBound * r..<part.rows.upperBound * r])
            return (names.moduleName(part), LoRAMatrices(a: a, aShape: [r, i], b: b, bShape: [part.rowCount, r]))
        }
    }

    /// `target_modules` and `target_parameters`: leaf names where every layer has the target, whole names where only some
    /// have. In a model with experts PEFT takes leaf names of an MLP for the experts', so dense MLPs are named as parameters.
    private func targets(_ names: AdapterNames, _ layout: Layout) -> (modules: [String], parameters: [String]) {
        let hasExperts = names.configuration.experts != nil
        var modules: Set<String> = [], parameters: Set<String> = []
        let incomplete = Set(names.weights.filter { matrices[$0] == nil }.map(names.kind))
        for weight in names.weights where matrices[weight] != nil {
            let isWhole = !incomplete.contains(names.kind(of: weight))
            switch weight {
            case .expertsGateUp, .expertsDown:
                if layout == .perExpert {
                    modules.formUnion(names.separateParts(of: weight).map { lastComponents(names.moduleName($0), 1) })
                } else {
                    let (module, parameter) = names.fused(of: weight)
                    parameters.insert((isWhole ? lastComponents(module, 2) : module) + "." + parameter)
                }
            case .gate, .up, .down:
                let module = names.module(of: weight)
                if hasExperts {
                    parameters.insert((isWhole ? lastComponents(module, 2) : module) + ".weight")
                } else {
                    modules.insert(isWhole ? lastComponents(module, 1) : module)
                }
            default:
                modules.insert(isWhole ? lastComponents(names.module(of: weight), 1) : names.module(of: weight))
            }
        }
        return (modules.sorted(), parameters.sorted())
    }
}

private func lastComponents(_ name: String, _ count: Int) -> String {
    name.split(separator: ".").suffix(count).joined(separator: ".")
}

extension LoRAMatrices {
    /// PEFT's layout of all experts in one pair: A [E r, I], expert-major; B [O, r E], the columns rank-major with the
    /// experts fastest.
    fileprivate var fusedForDisk: LoRAMatrices {
        let e = expertCount, r = rank, o = outputCount
        var columns = [Float](repeating: 0, count: b.count)
        for expert in 0..<e {
            for row in 0..<o {
                for k in 0..<r { columns[(row * r + k) * e + expert] = b[(expert * o + row) * r + k] }
            }
        }
        return LoRAMatrices(a: a, aShape: [e * r, inputCount], b: columns, bShape: [o, r * e])
    }
}
