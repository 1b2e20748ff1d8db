internal import MartletCore

/// What tiles are tried on: a layer's experts and attention as they will run, with random numbers.
struct TuningGround {
    private let backend: CUDABackend
    private let shapes: ScratchShapes
    /// Of experts; nil where they are small or do not take grouped kernels.
    private var size: ExpertsSize?
    /// Tokens of a sequence; 0 where attention is not our own.
    private var sequence = 0

    /// nil where there is too little to do for a choice to matter: some 40 microseconds of a large GPU.
    init?(_ backend: CUDABackend, _ shapes: ScratchShapes) {
        (self.backend, self.shapes) = (backend, shapes)
        guard shapes.trains, backend.computeDType.isHalf else { return nil }
        let enough = 1 << 33
        if backend.groupsExperts(shapes) {
            var size = ExpertsSize(shapes)
            size.t = min(size.t, max(1, TuningGround.rows(size) * size.e / size.k))
            if size.r * size.f * size.h >= enough { self.size = size }
        }
        if backend.usesFlash(headSize: shapes.headSize) {
            let rows = min(shapes.sequence > 0 ? shapes.sequence : shapes.tokens, shapes.tokens)
            if rows * shapes.tokens * shapes.queryHeads * shapes.headSize >= enough { sequence = rows }
        }
        guard self.size != nil || sequence > 0 else { return nil }
    }

    /// Rows an expert, by powers of two.
    private static func rows(_ s: ExpertsSize) -> Int { min(powerOfTwo(atLeast: ceilDiv(s.r, s.e)), 1024) }

    /// What a choice depends on, beside the machine.
    var name: String {
        let experts = size.map {
            "\(backend.expertsPath.rawValue) experts E \($0.e) K \($0.k) H \($0.h) F \($0.f) A \($0.a), "
                + "\(TuningGround.rows($0)) rows each"
        }
        let attention =
            sequence == 0
            ? nil
            : "attention Q \(shapes.queryHeads) G \(shapes.keyValueHeads) D \(shapes.headSize), "
                + "\(powerOfTwo(atLeast: sequence)) tokens"
        return [experts, attention].compactMap { $0 }.joined(separator: "; ")
    }

    /// nil where something went wrong: then the usual tiles stay.
    func answers() -> [TileAnswer]? {
        guard let memory = TuningMemory(backend, size, shapes, sequence) else { return nil }
        memory.fill()
        let tuning = TileTuning(backend.device, evict: memory.evict)
        backend.tiles.tuning = tuning
        defer { backend.tiles.tuning = nil }
        memory.runOps()
        tuning.beginTiming()
        memory.runOps()
        backend.device.synchronize()
        return backend.device.takeFailure() == nil ? tuning.answers : nil
    }
}

/// The tensors, in memory of their own that is given back: as many experts as there is room for.
private final class TuningMemory {
    private let backend: CUDABackend
    private let arena: Arena
    private let weights: Tensor
    private let experts: ExpertsPart?
    private let attention: AttentionPart?

    init?(_ backend: CUDABackend, _ size: ExpertsSize?, _ shapes: ScratchShapes, _ sequence: Int) {
        var size = size, free = 0, total = 0
        let dtype = backend.computeDType
        _ = backend.device.driver.memoryInfo(&free, &total)
        // Of the GiB that plans leave for kernels and libraries.
        let room = min(free, 1 << 30) - 256 << 20
        while TuningMemory.byteCount(size, shapes, sequence, dtype) > room {
            guard var smaller = size, smaller.e >= 4 * smaller.k else { return nil }
            (smaller.e, smaller.t) = (smaller.e / 2, smaller.t / 2)
            size = smaller
        }
        guard let arena = try? backend.makeArena(byteCount: TuningMemory.byteCount(size, shapes, sequence, dtype))
        else {
            return nil
        }
        (self.backend, self.arena) = (backend, arena)
        weights = TuningMemory.weights(size, dtype, in: arena)
        experts = size.map { [weights] in ExpertsPart($0, weights, in: arena) }
        attention = sequence > 0 ? AttentionPart(shapes, sequence, dtype, in: arena) : nil
    }

    private static func byteCount(
        _ size: ExpertsSize?, _ shapes: ScratchShapes, _ sequence: Int, _ dtype: DType
    ) -> Int {
        let arena = Arena.measuring(), weights = weights(size, dtype, in: arena)
        _ = size.map { ExpertsPart($0, weights, in: arena) }
        if sequence > 0 { _ = AttentionPart(shapes, sequence, dtype, in: arena) }
        return arena.byteCount
    }

    /// Of gate and up; those of down are the front of them. No less than 128 MB, for `evict`.
    private static func weights(_ s: ExpertsSize?, _ dtype: DType, in arena: Arena) -> Tensor {
        arena.carve([max(s.map { $0.e * 2 * $0.f * $0.h } ?? 0, 1 << 26)], dtype, for: .workspace)
    }

    func fill() {
        backend.fillNormal(weights, standardDeviation: 0.02, seed: 0)
        for tensor in (experts?.normal ?? []) + (attention?.normal ?? []) {
            backend.fillNormal(tensor, standardDeviation: 1, seed: 1)
        }
        if let sums = experts?.sums { backend.zero(sums) }
    }

    /// Reads and writes more than any cache holds: up to 128 MB each.
    func evict() {
        let half = min(weights.count / 2, 1 << 26)
        backend.set(weights.rows(0..<half), to: weights.rows(half..<2 * half))
    }

    func runOps() {
        experts?.run(backend)
        attention?.run(backend)
    }
}

/// A layer's experts, forward and backward. Tensors that nobody compares share memory.
private struct ExpertsPart {
    private let x_TH, y_TH, gateUp_RF, logits_TE, factor: Tensor
    /// Of all adapters' gradients.
    let sums: Tensor
    private let experts: Experts
    private let routing: Routing
    private let size: ExpertsSize

    init(_ s: ExpertsSize, _ weights: Tensor, in arena: Arena) {
        func carve(_ shape: Shape, _ dtype: DType = weights.dtype) -> Tensor {
            arena.carve(shape, dtype, for: .workspace)
        }
        size = s
        (x_TH, y_TH, gateUp_RF) = (carve([s.t, s.h]), carve([s.t, s.h]), carve([s.r, 2 * s.f]))
        logits_TE = carve([s.t, s.e])
        let factor = carve([s.e, s.a, max(s.h, 2 * s.f)])
        let sums = carve([s.e, s.a, max(s.h, 2 * s.f)], .float32)
        (self.factor, self.sums) = (factor, sums)
        routing = Routing(
            probability_TE: carve([s.t, s.e], .float32), logSumExp_T: carve([s.t], .float32),
            expert_TK: carve([s.t, s.k], .int32), weight_TK: carve([s.t, s.k], .float32),
            order_R: carve([s.r], .int32), offset_E1: carve([s.e + 1], .int32))
        func adapter(inputs: Int, outputs: Int) -> LoRA? {
            let a: Shape = [s.e, s.a, inputs], b: Shape = [s.e, outputs, s.a]
            return s.a == 0
                ? nil
                : LoRA(
                    a: factor.reshaped(a), b: factor.reshaped(b), da: sums.reshaped(a), db: sums.reshaped(b), scale: 1)
        }
        experts = Experts(
            gateUp_EFH: weights.reshaped([s.e, 2 * s.f, s.h]), down_EHF: weights.reshaped([s.e, s.h, s.f]),
            gateUpAdapter: adapter(inputs: s.h, outputs: 2 * s.f), downAdapter: adapter(inputs: s.f, outputs: s.h))
    }

    var normal: [Tensor] { [x_TH, logits_TE, factor] }

    func run(_ backend: CUDABackend) {
        backend.route(
            logits_TE, RouterOptions(expertsPerToken: size.k, normalizesTopK: true), into: routing)
        backend.experts(x_TH, routing, experts, firstRow: 0, into: gateUp_RF, y_TH, residual_TH: x_TH)
        // The routing weights' gradient goes where the probabilities stand, which are not needed any more.
        backend.expertsBackward(
            x_TH, routing, experts, firstRow: 0, gateUp_RF, x_TH, into: y_TH,
            routing.probability_TE.reshaped([size.t, size.k]), gradients: .later)
    }
}

/// Attention over as many sequences as fit.
private struct AttentionPart {
    private let q_TQD, k_TGD, v_TGD, o_TQD, logSumExp_TQ: Tensor
    private let spans: [AttentionSpan]

    init(_ shapes: ScratchShapes, _ sequence: Int, _ dtype: DType, in arena: Arena) {
        let count = max(1, min(shapes.tokens, 4096) / sequence), (T, D) = (count * sequence, shapes.headSize)
        func carve(_ heads: Int) -> Tensor { arena.carve([T, heads, D], dtype, for: .workspace) }
        (q_TQD, o_TQD) = (carve(shapes.queryHeads), carve(shapes.queryHeads))
        (k_TGD, v_TGD) = (carve(shapes.keyValueHeads), carve(shapes.keyValueHeads))
        logSumExp_TQ = arena.carve([T, shapes.queryHeads], .float32, for: .workspace)
        spans = (0..<count).map {
            AttentionSpan(
                queryStart: $0 * sequence, queryCount: sequence, keyStart: $0 * sequence, keyCount: sequence)
        }
    }

    var normal: [Tensor] { [q_TQD, k_TGD, v_TGD] }

    func run(_ backend: CUDABackend) {
        let scale = 1 / Float(q_TQD.shape[2]).squareRoot()
        _ = backend.flashAttention(AttentionCall(q_TQD, k_TGD, v_TGD, o_TQD, logSumExp_TQ, spans, scale))
    }
}

private func powerOfTwo(atLeast n: Int) -> Int {
    var power = 1
    while power < n { power *= 2 }
    return power
}
