package import MartletCore

/// A decoder with its weights, adapters and gradients in one arena, ready to take steps through.
package final class Model {
    private let source: any WeightSource
    package let settings: ModelSettings
    package let plan: ExecutionPlan
    package let backend: any Backend

    let memory: ModelMemory
    let layer: DecoderLayer
    /// What everything is carved from; the host's is nil where nothing lives there.
    private let arena: Arena, hostArena: Arena?
    private let wholes: [Weight: Parameter]
    private let factors: [Weight: (a: Parameter, b: Parameter)]
    private let indices: [Weight: UInt64]
    /// Which layer each slot of decoded weights holds.
    private var layerInSlot: [Int?]
    /// What the router losses of the current step have gathered.
    var routerSums = RouterSums()
    /// Of the gradients of the last step.
    var squares: [Double] = []
    /// Layers whose stored weights were found finite; they are decoded again in every pass.
    private var checkedLayers: Set<Int> = []
    /// Distinguishes the dropout masks of steps; nil outside training.
    var dropoutStep: Int?
    /// An update of parameters that the next pass makes.
    var pending: PendingUpdate?

    /// How the weights came into the backend's memory; nil where there is only room for a layer at a time, or no disk.
    private(set) package var loading: Loading?

    package let configuration: ModelConfiguration
    /// Everything that is trained, in a fixed order.
    package var parameters: [Parameter] { memory.parameters }

    /// Allocates what the plan says and reads the weights. Adapters start as PEFT starts them: A uniform within
    /// 1 / sqrt(inputs), B zero.
    package init(
        _ source: any WeightSource, _ settings: ModelSettings, _ plan: ExecutionPlan, _ backend: any Backend
    ) throws(MartletError) {
        let c = source.configuration
        self.source = source
        configuration = c
        self.settings = settings
        self.plan = plan
        self.backend = backend
        let planner = Planner(c, settings, backend), hostSize = planner.hostByteCount(plan)
        // First the memory that is more often short.
        arena = try backend.makeArena(byteCount: planner.byteCount(plan))
        hostArena = hostSize > 0 ? try backend.makeHostArena(byteCount: hostSize) : nil
        memory = ModelMemory(
            c, settings, plan, backend, in: Memory(device: arena, host: hostArena ?? .measuring()))
        layer = DecoderLayer(
            backend: backend,
            attention: Attention(
                backend: backend, scale: 1 / Float(c.headSize).squareRoot(), rope: memory.rope),
            feedForward: FeedForward(
                backend: backend,
                options: RouterOptions(
                    expertsPerToken: c.experts?.expertsPerToken ?? 0,
                    normalizesTopK: c.experts?.normalizesTopK ?? false)),
            epsilon: c.rmsEpsilon)
        layerInSlot = Array(repeating: nil, count: memory.layerSlots.count)
        indices = Dictionary(uniqueKeysWithValues: c.weights.enumerated().map { ($1, UInt64($0)) })
        wholes = Dictionary(
            uniqueKeysWithValues: memory.parameters.filter { $0.role == .whole }.map { ($0.weight, $0) })
        let a = memory.parameters.filter { $0.role == .a }, b = memory.parameters.filter { $0.role == .b }
        factors = Dictionary(uniqueKeysWithValues: zip(a, b).map { ($0.weight, (a: $0, b: $1)) })
        rehearse()
        let clock = ContinuousClock(), began = clock.now
        try readWeights()
        if plan.keepsWeights { loading = Loading(byteCount: source.storedByteCount, duration: clock.now - began) }
        try backend.finish()
        initializeAdapters()
    }

    private func readWeights() throws(MartletError) {
        for (weight, tensor) in memory.outerWeights { try read(weight, into: tensor) }
        for parameter in wholes.values { try read(parameter) }
        source.releasePages()
        if plan.keepsWeights {
            for index in 0..<configuration.layerCount { _ = try weights(of: index) }
        }
        backend.zero(parameters.flatMap { $0.state.map(\.tensor) })
        let c = configuration, half = c.headSize / 2
        var cosine = [Float](), sine = [Float]()
        cosine.reserveCapacity(plan.maximumLength * half)
        sine.reserveCapacity(plan.maximumLength * half)
        // Float arithmetic as in transformers: frequency and angle are rounded to float32.
        let frequency_J = (0..<half).map { Float(1 / c.ropeTheta.raised(to: Double(2 * $0) / Double(c.headSize))) }
        for position in 0..<plan.maximumLength {
            for frequency in frequency_J {
                let angle = Double(Float(position) * frequency)
                cosine.append(Float(angle.cosine))
                sine.append(Float(angle.sine))
            }
        }
        upload(cosine, into: memory.rope.cosine_PJ)
        upload(sine, into: memory.rope.sine_PJ)
    }

    private func read(_ weight: Weight, into tensor: Tensor) throws(MartletError) {
        try source.read(weight, into: tensor, using: backend, checksValues: true)
    }

    /// Reads a weight that is trained whole. In halves it comes by the gradient's memory, which is not in use yet: the
    /// stored numbers may have more bits than what is computed with.
    private func read(_ parameter: Parameter) throws(MartletError) {
        try read(parameter.weight, into: parameter.value)
        guard parameter.master.rest != nil else { return }
        try source.read(parameter.weight, into: parameter.gradient, using: backend, checksValues: false)
        backend.split([(parameter.gradient, parameter.master)])
    }

    private func initializeAdapters() {
        var pairs: [(x_N: Tensor, master: Master)] = []
        for parameter in parameters where parameter.role != .whole {
            guard parameter.role == .a else {
                backend.zero(parameter.master.tensors)
                continue
            }
            // The gradient's memory is not in use yet.
            let x_N = parameter.master.rest == nil ? parameter.value : parameter.gradient
            backend.fillUniform(
                x_N, bound: 1 / Float(x_N.shape[-1]).squareRoot(),
                seed: settings.seed &* 0x9E37_79B9_7F4A_7C15 &+ (indices[parameter.weight] ?? 0))
            if parameter.master.rest != nil { pairs.append((x_N, parameter.master)) }
        }
        if !pairs.isEmpty { backend.split(pairs) }
    }

    // MARK: Reading and writing tensors from the host

    package func upload(_ values: [Float], into tensor: Tensor) {
        values.withUnsafeBytes { backend.upload($0, as: .float32, into: tensor) }
    }

    package func upload(_ values: [Int32], into tensor: Tensor) {
        values.withUnsafeBytes { backend.upload($0, as: .int32, into: tensor) }
    }

    /// The elements of a floating-point tensor.
    package func floats(_ tensor: Tensor) -> [Float] {
        guard tensor.dtype == .float32 else {
            let bytes = [UInt8](unsafeUninitializedCapacity: tensor.byteCount) { buffer, count in
                backend.download(tensor, into: UnsafeMutableRawBufferPointer(buffer))
                count = tensor.byteCount
            }
            return [Float](unsafeUninitializedCapacity: tensor.count) { buffer, count in
                bytes.withUnsafeBytes { convertToFloat($0, as: tensor.dtype, into: buffer) }
                count = tensor.count
            }
        }
        return [Float](unsafeUninitializedCapacity: tensor.count) { buffer, count in
            backend.download(tensor, into: UnsafeMutableRawBufferPointer(buffer))
            count = tensor.count
        }
    }

    func integers(_ tensor: Tensor) -> [Int32] {
        [Int32](unsafeUninitializedCapacity: tensor.count) { buffer, count in
            backend.download(tensor, into: UnsafeMutableRawBufferPointer(buffer))
            count = tensor.count
        }
    }

    /// Adapter factors on `weight` (trained or only applied) as ops read them, if it has them.
    package func adapterTensors(on weight: Weight) -> (a: Tensor, b: Tensor)? {
        if let pair = factors[weight] { return (pair.a.value, pair.b.value) }
        return memory.appliedAdapters[weight]
    }

    /// The masters of the trained adapter factors on `weight`, if it has them.
    func adapterMasters(on weight: Weight) -> (a: Master, b: Master)? {
        factors[weight].map { ($0.a.master, $0.b.master) }
    }

    // MARK: Weights to compute with

    /// Layer `index`'s weights, decoded into their slot if they are not there already.
    func weights(of index: Int) throws(MartletError) -> LayerWeights {
        let slotIndex = plan.keepsWeights ? index : 0
        let slot = memory.layerSlots[slotIndex]
        if layerInSlot[slotIndex] != index {
            layerInSlot[slotIndex] = nil
            for weight in configuration.layerWeights(index) {
                guard wholes[weight] == nil, let tensor = slot[weight.kind] else { continue }
                try source.read(
                    weight, into: tensor, using: backend, checksValues: !checkedLayers.contains(index))
            }
            source.releasePages()
            checkedLayers.insert(index)
            layerInSlot[slotIndex] = index
        }
        return place(of: index)
    }

    /// Where layer `index`'s weights are, or will be.
    func place(of index: Int) -> LayerWeights {
        let slot = memory.layerSlots[plan.keepsWeights ? index : 0]
        let epsilon = configuration.rmsEpsilon
        let queryNorm = norm(.queryNorm(index), slot), keyNorm = norm(.keyNorm(index), slot)
        return LayerWeights(
            inputNorm: norm(.inputNorm(index), slot),
            query: linear(.query(index), slot), key: linear(.key(index), slot), value: linear(.value(index), slot),
            output: linear(.output(index), slot),
            queryNorm: HeadNorm(weight_D: queryNorm.weight_H, epsilon: epsilon, dweight_D: queryNorm.dweight_H),
            keyNorm: HeadNorm(weight_D: keyNorm.weight_H, epsilon: epsilon, dweight_D: keyNorm.dweight_H),
            postAttentionNorm: norm(.postAttentionNorm(index), slot),
            feedForward: configuration.isSparse[index]
                ? .sparse(router: linear(.router(index), slot), experts: experts(index, slot))
                : .dense(
                    gate: linear(.gate(index), slot), up: linear(.up(index), slot), down: linear(.down(index), slot)))
    }

    /// The value and, if it is trained, the gradient of an embedding, final norm or head.
    func outer(_ weight: Weight) -> (value: Tensor, gradient: Tensor?) {
        if let parameter = wholes[weight] { return (parameter.value, parameter.gradient) }
        guard let tensor = memory.outerWeights[weight] else {
            preconditionFailure("\(weight) has no memory")
        }
        return (tensor, nil)
    }

    private func value(_ weight: Weight, _ slot: [Weight.Kind: Tensor]) -> Tensor {
        guard let tensor = wholes[weight]?.value ?? slot[weight.kind] else {
            preconditionFailure("\(weight) has no memory")
        }
        return tensor
    }

    private func norm(_ weight: Weight, _ slot: [Weight.Kind: Tensor]) -> Norm {
        Norm(weight_H: value(weight, slot), dweight_H: wholes[weight]?.accumulator)
    }

    private func linear(_ weight: Weight, _ slot: [Weight.Kind: Tensor]) -> Linear {
        Linear(weight_OI: value(weight, slot), adapter: adapter(weight), dweight_OI: wholes[weight]?.accumulator)
    }

    private func experts(_ index: Int, _ slot: [Weight.Kind: Tensor]) -> Experts {
        let gateUp = Weight.expertsGateUp(index), down = Weight.expertsDown(index)
        return Experts(
            gateUp_EFH: value(gateUp, slot), down_EHF: value(down, slot),
            gateUpAdapter: adapter(gateUp), downAdapter: adapter(down),
            dgateUp_EFH: wholes[gateUp]?.accumulator, ddown_EHF: wholes[down]?.accumulator)
    }

    private func adapter(_ weight: Weight) -> LoRA? {
        guard let lora = settings.adapter, let tensors = adapterTensors(on: weight) else { return nil }
        let pair = factors[weight]
        return LoRA(
            a: tensors.a, b: tensors.b, da: pair?.a.accumulator, db: pair?.b.accumulator, scale: lora.scale,
            dropout: dropout(lora, weight))
    }

    private func dropout(_ lora: LoRASettings, _ weight: Weight) -> Dropout? {
        guard lora.dropout > 0, let step = dropoutStep, let index = indices[weight] else { return nil }
        let words = Philox(seed: settings.seed).words(UInt64(step), index)
        return Dropout(probability: lora.dropout, key: UInt64(words.x) << 32 | UInt64(words.y))
    }
}

/// A checkpoint read from disk, checked, and put where it is computed with.
package struct Loading {
    package let byteCount: Int
    package let seconds: Double

    /// nil where nothing was on a disk.
    init?(byteCount: Int, duration: Duration) {
        guard byteCount > 0 else { return nil }
        self.byteCount = byteCount
        seconds = Double(duration.components.seconds) + Double(duration.components.attoseconds) * 1e-18
    }

    /// "4.6 GiB in 1.2 s, 4.1 GB/s"
    package var text: String {
        "\(formatBytes(byteCount)) in \(fixed(seconds, 1)) s, \(fixed(Double(byteCount) / max(seconds, 1e-9) / 1e9, 1)) GB/s"
    }
}
