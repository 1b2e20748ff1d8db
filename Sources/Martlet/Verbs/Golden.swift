internal import MartletCore
internal import MartletModel

/// A tiny checkpoint, and what transformers and PEFT compute with it: docs/goldens.md.
struct Golden {
    private let folder: String
    private let reference: SafeTensorsFile
    private let checkpoint: Checkpoint
    private let backend: any Backend
    private let bounds: GoldenBounds

    /// `dtype` is that whose bounds count, if not the backend's own.
    init(folder: String, on backend: any Backend, judgedAs dtype: DType? = nil) throws(MartletError) {
        self.folder = folder
        self.backend = backend
        bounds = GoldenBounds(dtype: dtype ?? backend.computeDType)
        reference = try SafeTensorsFile(FileSystem.join(folder, "reference.safetensors"))
        checkpoint = try Checkpoint(folder: folder)
    }

    private var isCoarse: Bool { bounds.isCoarse }

    /// The model alone, and packed; then with its adapter, and with all weights trained: gradients and five steps of AdamW; the
    /// routers' auxiliary loss and gradients.
    func distances() throws(MartletError) -> [GoldenDistance] {
        let plain = try model(ModelSettings(.inference), tile: 5)
        return [
            logits("logits", try plain.logits(step()), try floats("forward.logits")),
            try loss("loss", plain.evaluate(step()).loss, "forward.loss"),
            logits("packed", try plain.logits(packed()), try floats("packed.logits")),
        ] + (try adapted()) + (bounds.dtype == .float16 ? [] : try whole()) + (try routers())
    }

    private func adapted() throws(MartletError) -> [GoldenDistance] {
        let path = FileSystem.join(folder, "adapter"),
            adapter = try Adapter(folder: path, for: checkpoint.configuration)
        let model = try model(ModelSettings(.lora, adapter: LoRASettings(adapter)), tile: 7)
        try model.load(adapter)
        var found = [logits("adapted logits", try model.logits(step()), try floats("lora.logits"))]
        found.append(try loss("adapted loss", model.trainStep(step(), index: 0).loss, "lora.loss"))
        found.append(gradients("adapter's gradients", try factors(model, "lora.grad.") { $0.gradient }))
        // Moving weights change choices of experts, which no margin of the golden prevents.
        if !isCoarse || checkpoint.configuration.experts == nil {
            found.append(try losses("losses of 5 steps", model, "lora.losses"))
        }
        // AdamW's first steps are of one size, whatever the gradient: where that is near zero, rounding decides on the sign.
        if !isCoarse {
            let after = try factors(model, "lora.after.") { $0.value }
            found.append(
                bounds.distance("adapter after 5 steps", after.value, half: 1e-3, whole: 1e-3, at: after.place))
        }
        return found
    }

    /// Every weight trained, the routers' too. Of bfloat16 what comes before choices of experts and signs may
    /// differ; not in float16, which does not train them.
    private func whole() throws(MartletError) -> [GoldenDistance] {
        var settings = ModelSettings(.full)
        settings.trainsRouter = checkpoint.configuration.experts != nil
        let model = try model(settings, tile: 7)
        _ = try model.trainStep(step(), index: 0)
        var found = [gradients("all gradients", try parts(model.parameters, model, "grad.") { $0.gradient })]
        if !isCoarse || checkpoint.configuration.experts == nil {
            found.append(try losses("losses of 5 steps of all", model, "train.losses"))
        }
        if !isCoarse {
            let after = try parts(model.parameters, model, "train.after.", mayLack: true) { $0.value }
            found.append(
                bounds.distance("some weights after these", after.value, half: 1e-3, whole: 1e-3, at: after.place))
        }
        return found
    }

    private func losses(_ name: String, _ model: Model, _ key: String) throws(MartletError) -> GoldenDistance {
        let losses = try steps(model), wanted = try floats(key).map(Double.init)
        return bounds.distance(
            name, largest(zip(losses, wanted).map { $0 - $1 }) / largest(wanted), half: 0.01, whole: 1e-3)
    }

    /// Losses before each of five steps and after the last, with the settings of tools/goldens/judge.py.
    private func steps(_ model: Model) throws(MartletError) -> [Double] {
        var losses: [Double] = []
        for index in 0..<5 {
            losses.append(try model.trainStep(step(), index: index).loss)
            backend.adamW(
                model.parameters.map { $0.adamW(weightDecay: 0.5) }, AdamWSettings(weightDecay: 0.5), step: index + 1,
                learningRate: 2e-3, gradientScale: 1)
        }
        losses.append(try model.evaluate(step()).loss)
        return losses
    }

    /// The load-balancing loss, and the routers' gradients with it. The adapter is new: B = 0 changes nothing.
    private func routers() throws(MartletError) -> [GoldenDistance] {
        guard let experts = checkpoint.configuration.experts else { return [] }
        var settings = ModelSettings(.lora, adapter: LoRASettings(rank: 4, alpha: 8))
        settings.trainsRouter = true
        settings.auxiliaryLossCoefficient = experts.auxiliaryLossCoefficient
        let model = try model(settings, tile: 7), outcome = try model.trainStep(step(), index: 0)
        let wanted = Double(try floats("aux.loss")[0])
        let auxiliary = (outcome.auxiliaryLoss / experts.auxiliaryLossCoefficient - wanted).magnitude / wanted
        let routers = model.parameters.filter { $0.weight.kind == .router }
        return [
            bounds.distance("auxiliary loss", auxiliary, half: 0.01, whole: 1e-5),
            gradients("routers' gradients", try parts(routers, model, "aux.grad.") { $0.gradient }),
        ]
    }

    // MARK: Distances

    // Those of logits and losses are absolute in float32, as in docs/goldens.md.

    private func logits(_ name: String, _ found: [Float], _ wanted: [Float]) -> GoldenDistance {
        let size = isCoarse ? 1 : largest(wanted.map(Double.init))
        return bounds.distance(name, Parity.error(of: found, wanted) * size, half: 0.02, whole: 1e-4)
    }

    private func loss(_ name: String, _ found: Double, _ key: String) throws(MartletError) -> GoldenDistance {
        let wanted = Double(try floats(key)[0]), size = isCoarse ? wanted : 1
        return bounds.distance(name, (found - wanted).magnitude / size, half: 0.01, whole: 1e-5)
    }

    /// In float32 the largest difference, of the largest entry. Rounding to 16 bits is judged by norms, as it is luck which entry it
    /// hits hardest; but no entry may be twice as far off.
    private func error(_ found: [Float], _ wanted: [Float]) -> Double {
        let largest = Parity.error(of: found, wanted)
        return isCoarse ? max(Parity.normError(of: found, wanted), largest / 2) : largest
    }

    private func gradients(_ name: String, _ worst: Worst) -> GoldenDistance {
        bounds.distance(name, worst.value, half: 0.05, whole: 1e-4, at: worst.place)
    }

    /// The tensor that is furthest off, relative to its own size.
    private struct Worst {
        var value = 0.0
        var place: String?

        mutating func meet(_ error: Double, at place: String) {
            if error > value { (value, self.place) = (error, place) }
        }
    }

    /// Of the adapter's tensors, under PEFT's names.
    private func factors(
        _ model: Model, _ prefix: String, _ tensor: (Parameter) -> Tensor
    ) throws(MartletError) -> Worst {
        guard var adapter = model.adapter(baseModel: "") else { return Worst(value: .infinity) }
        for parameter in model.parameters {
            let values = model.floats(tensor(parameter))
            if parameter.role == .a { adapter.matrices[parameter.weight]?.a = values }
            if parameter.role == .b { adapter.matrices[parameter.weight]?.b = values }
        }
        let written = try ScratchFolder("martlet-golden")
        try adapter.write(to: written.path, for: checkpoint.configuration)
        let file = try SafeTensorsFile(FileSystem.join(written.path, "adapter_model.safetensors"))
        let wanted = reference.tensors.filter { $0.name.hasPrefix(prefix) }
        guard wanted.count == file.tensors.count else { return Worst(value: .infinity) }
        var worst = Worst()
        for tensor in wanted {
            let name = String(tensor.name.dropFirst(prefix.count))
            guard let found = file[name] else { return Worst(value: .infinity, place: name) }
            worst.meet(error(try found.floats(), try tensor.floats()), at: name)
        }
        return worst
    }

    /// Of the parts that a checkpoint stores these weights in.
    private func parts(
        _ parameters: [Parameter], _ model: Model, _ prefix: String, mayLack: Bool = false,
        _ tensor: (Parameter) -> Tensor
    ) throws(MartletError) -> Worst {
        var worst = Worst()
        for parameter in parameters {
            let values = model.floats(tensor(parameter))
            for part in checkpoint.family.layouts(parameter.weight, checkpoint.configuration)[0] {
                if mayLack, reference[prefix + part.name] == nil { continue }
                let start = part.firstRow * part.columnCount, end = start + part.rowCount * part.columnCount
                worst.meet(error(Array(values[start..<end]), try floats(prefix + part.name)), at: part.name)
            }
        }
        return worst
    }

    private func largest(_ values: [Double]) -> Double {
        values.reduce(0) { $1.isNaN ? .infinity : max($0, $1.magnitude) }
    }

    // MARK: Parts

    private func model(_ settings: ModelSettings, tile: Int) throws(MartletError) -> Model {
        let tokens = try integers("input.input_ids").count
        var plan = ExecutionPlan(stepTokens: tokens, tileTokens: tile, maximumLength: tokens)
        plan.keptLayers = 1
        plan.logitRows = plan.tileTokens
        return try Model(checkpoint, settings, plan, backend)
    }

    /// All sequences as one step; the labels count as transformers counts them.
    private func step() throws(MartletError) -> PackedStep {
        let ids = try integers("input.input_ids"), labels = try integers("input.labels")
        let length = try tensor("input.input_ids").shape[1]
        var step = PackedStep()
        for start in stride(from: 0, to: ids.count, by: length) {
            step.append(Array(ids[start..<start + length]), isTrained: labels[start..<start + length].map { $0 >= 0 })
        }
        return step
    }

    /// One row that holds two sequences.
    private func packed() throws(MartletError) -> PackedStep {
        let ids = try integers("packed.input_ids"), positions = try integers("packed.position_ids")
        let cut = positions.indices.dropFirst().first { positions[$0] == 0 } ?? ids.count
        var step = PackedStep()
        for part in [Array(ids[..<cut]), Array(ids[cut...])] { step.append(part, isTrained: part.map { _ in true }) }
        return step
    }

    private func tensor(_ name: String) throws(MartletError) -> HostTensor {
        guard let tensor = reference[name] else {
            throw MartletError(
                "there is no tensor '\(name)'", in: reference.path, because: "it is not a golden of this version",
                fix: "make it again with tools/goldens/model.py")
        }
        return tensor
    }

    private func floats(_ name: String) throws(MartletError) -> [Float] { try tensor(name).floats() }

    private func integers(_ name: String) throws(MartletError) -> [Int32] {
        try tensor(name).withBytes { Array($0.bindMemory(to: Int32.self)) }
    }
}
