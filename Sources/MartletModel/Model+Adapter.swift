package import MartletCore

extension LoRASettings {
    /// The settings under which a model can hold `adapter`. Pairs of different rank are padded to the largest; alpha
    /// then keeps the scale that the adapter was trained with.
    package init(_ adapter: Adapter) {
        let ranks = adapter.matrices.values.map(\.rank)
        let kinds = Set(adapter.matrices.keys.map(\.kind))
        self.init(
            rank: adapter.settings.rank, alpha: adapter.settings.alpha, usesRSLoRA: adapter.settings.usesRSLoRA,
            dropout: Float(adapter.settings.dropout),
            targets: Set(LoRATarget.allCases.filter { kinds.contains($0.weight(layer: 0).kind) }))
        if let largest = ranks.max(), largest != rank {
            alpha = Double(adapter.settings.scale) * Double(largest)
            usesRSLoRA = false
            rank = largest
        }
    }
}

extension Model {
    /// Puts an adapter's factors on the model, whose settings must be `LoRASettings(adapter)`. Targeted weights that the
    /// adapter leaves out (it may adapt some layers only) get B = 0.
    package func load(_ adapter: Adapter) throws(MartletError) {
        settle()
        guard let settings = settings.adapter, settings.scale == LoRASettings(adapter).scale else {
            throw MartletError(
                "the adapter does not fit the run",
                because: "its rank, alpha or rsLoRA differ from the model's settings",
                fix: "load it under its own settings")
        }
        for weight in adapter.matrices.keys where adapterTensors(on: weight) == nil {
            throw MartletError(
                "the adapter adapts \(weight.name), which the run does not", fix: "add it to target_modules")
        }
        for weight in configuration.weights {
            guard let (a, b) = adapterTensors(on: weight) else { continue }
            let masters = adapterMasters(on: weight)
            guard let pair = adapter.matrices[weight]?.padded(to: settings.rank) else {
                backend.zero(masters.map { $0.a.tensors + $0.b.tensors } ?? [a, b])
                continue
            }
            try pair.checkFit(weight, configuration)
            guard let masters else {
                upload(pair.a, into: a)
                upload(pair.b, into: b)
                continue
            }
            pair.a.withUnsafeBytes { backend.upload($0, into: masters.a) }
            pair.b.withUnsafeBytes { backend.upload($0, into: masters.b) }
        }
    }

    /// The adapter on the model, as it stands.
    package func adapter(baseModel: String) -> Adapter? {
        guard let lora = settings.adapter else { return nil }
        settle()
        var matrices: [Weight: LoRAMatrices] = [:]
        for weight in configuration.weights {
            guard let (a, b) = adapterTensors(on: weight) else { continue }
            let masters = adapterMasters(on: weight)
            matrices[weight] = LoRAMatrices(
                a: masters.map { backend.floats($0.a) } ?? floats(a), aShape: a.shape.array,
                b: masters.map { backend.floats($0.b) } ?? floats(b), bShape: b.shape.array)
        }
        let settings = AdapterSettings(
            rank: lora.rank, alpha: lora.alpha, usesRSLoRA: lora.usesRSLoRA, dropout: Double(lora.dropout),
            baseModel: baseModel)
        return Adapter(settings: settings, matrices: matrices)
    }
}
