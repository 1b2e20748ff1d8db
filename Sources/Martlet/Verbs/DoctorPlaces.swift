internal import MartletCore
internal import MartletModel

extension Patient {
    /// Trains an adapter, and every weight, with everything on the device; with state, gradients, hidden states, attention's
    /// outputs and some tiles' activations in host memory, and temporaries as small as they may be; and so again, but put back on the device half way, as a
    /// run is that was resumed with more memory. All have to end with the same bytes.
    package func placesVerdict() throws(MartletError) -> (isSound: Bool, detail: String) {
        let lora = ModelSettings(.lora, adapter: LoRASettings(rank: 3, alpha: 6, dropout: 0.1))
        var quantized = lora
        quantized.quantizesMoments = true
        var here = plan, away = plan
        here.keptLayers = 3
        (away.keptLayers, away.hiddenOut, away.outputsOut, away.room) = (0, true, true, .scant)
        (away.stateLayersOut, away.gradientLayersOut) = (3, 3)
        away.tilesOut = 2 * away.tileCount
        var differing: [String] = [], count = 0
        // Of this rank some kernels make skinny products on the way.
        let even = ModelSettings(.lora, adapter: LoRASettings(rank: 16, alpha: 16))
        let other = try Patient(backend: backend, isEven: true)
        var cases = [
            ("adapters", self, lora), ("adapters, 8 bits", self, quantized), ("adapters of rank 16", other, even),
        ]
        if backend.computeDType != .float16 { cases.append(("weights", self, ModelSettings(.full))) }
        for (name, patient, settings) in cases {
            let start = try patient.trained(settings, here, steps: 0..<0)
            let wanted = try patient.trained(settings, here, steps: 0..<4)
            count += wanted.reduce(0) { $0 + $1.count }
            if wanted == start { differing.append("\(name): nothing was learned") }
            if try patient.trained(settings, away, steps: 0..<4) != wanted { differing.append(name) }
            let halfWay = try patient.trained(settings, away, steps: 0..<2)
            if try patient.trained(settings, here, steps: 2..<4, from: halfWay) != wanted {
                differing.append("\(name), resumed")
            }
        }
        return (
            differing.isEmpty,
            differing.isEmpty
                ? "the same \(formatBytes(count)) of numbers and optimizer state after four steps, resumed too"
                : "not the same bytes: \(differing.joined(separator: "; "))"
        )
    }

    /// The bytes of each trained tensor's float32 numbers and of its optimizer state, before or after some steps.
    private func trained(
        _ settings: ModelSettings, _ plan: ExecutionPlan, steps: Range<Int>, from state: [[UInt8]]? = nil
    ) throws(MartletError) -> [[UInt8]] {
        let model = try Model(try Checkpoint(folder: folder.path), settings, plan, backend)
        if let state { restore(state, model) }
        for index in steps {
            _ = try model.trainStep(step, index: index)
            _ = model.gradientSquares()
            model.update(
                OptimizerStep(
                    AdamWSettings(weightDecay: 0.1), number: index + 1, learningRate: 0.01, gradientScale: 0.5))
        }
        model.settle()
        let found = model.parameters.flatMap { parameter in
            [backend.floats(parameter.master).withUnsafeBytes(Array.init)] + parameter.state.map { bytes($0.tensor) }
        }
        try backend.finish()
        return found
    }

    private func restore(_ state: [[UInt8]], _ model: Model) {
        var rest = state[...]
        for parameter in model.parameters {
            rest.popFirst()?.withUnsafeBytes { backend.upload($0, into: parameter.master) }
            for (_, tensor) in parameter.state {
                rest.popFirst()?.withUnsafeBytes { backend.upload($0, as: tensor.dtype, into: tensor) }
            }
        }
    }

    private func bytes(_ tensor: Tensor) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: tensor.byteCount) { buffer, count in
            backend.download(tensor, into: UnsafeMutableRawBufferPointer(buffer))
            count = tensor.byteCount
        }
    }
}
