internal import MartletCUDA
internal import MartletCore

/// The extents of a layer that ops are measured at.
struct OpSizes {
    /// Tokens, hidden, vocabulary, query heads, key/value heads, head size.
    var T: Int, H: Int, V: Int, Q: Int, G: Int, D: Int
    /// Experts, experts a token, their inner size, LoRA rank.
    var E: Int, K: Int, F: Int, A = 16

    init(_ shapes: OpBenchmark.Shapes, tokens: Int) {
        T = tokens
        switch shapes {
        case .wide: (H, V, Q, G, D, E, K, F) = (512, 8192, 8, 4, 64, 32, 4, 256)
        case .fine: (H, V, Q, G, D, E, K, F) = (512, 8192, 8, 4, 64, 128, 8, 64)
        case .qwen30b: (H, V, Q, G, D, E, K, F) = (2048, 151936, 32, 4, 128, 128, 8, 768)
        }
    }

    /// As a run of one tile plans them that has memory to spare.
    var scratch: ScratchShapes {
        var shapes = ScratchShapes()
        (shapes.tokens, shapes.keyRows, shapes.sequence) = (T, T, T)
        (shapes.hidden, shapes.vocabulary) = (H, V)
        (shapes.queryHeads, shapes.keyValueHeads, shapes.headSize) = (Q, G, D)
        (shapes.experts, shapes.expertsPerToken, shapes.expertInner) = (E, K, F)
        (shapes.widest, shapes.rank, shapes.room) = (max(H, Q * D, E), A, .ample)
        return shapes
    }
}

/// Several tensors of one shape, taken in turns, so that on a GPU what a call reads is not in the cache from the call
/// before.
struct Ring {
    fileprivate let all: Tensor

    subscript(call: Int) -> Tensor { all[call % all.shape[0]] }
    var byteCount: Int { all.byteCount / all.shape[0] }
    var count: Int { all.count / all.shape[0] }
}

/// Memory of the benchmark's tensors, and what they start with. Cases carve from a measuring one first, and the same again
/// from one with memory behind it.
final class OpMemory {
    let backend: any Backend
    let s: OpSizes
    private let arena: Arena
    private var seed: UInt64 = 0

    /// More than any GPU's L2 cache holds.
    private static let ringByteCount = 128 << 20
    /// Numbers that are drawn for a tensor; from there on they repeat, since the CPU takes long for them.
    private static let drawnCount = 1 << 20

    private init(_ backend: any Backend, _ sizes: OpSizes, in arena: Arena) {
        self.backend = backend
        self.arena = arena
        s = sizes
        backend.reserveScratch(for: sizes.scratch, in: arena)
    }

    static func measuring(_ backend: any Backend, _ sizes: OpSizes) -> OpMemory {
        OpMemory(backend, sizes, in: Arena.measuring())
    }

    /// Of the size that `groups` of cases take.
    convenience init(
        _ backend: any Backend, _ sizes: OpSizes, for groups: [(OpMemory) -> [TimedOp]]
    ) throws(MartletError) {
        let measuring = OpMemory.measuring(backend, sizes)
        for group in groups { _ = group(measuring) }
        self.init(backend, sizes, in: try backend.makeArena(byteCount: measuring.arena.byteCount))
    }

    /// Normal numbers, in the compute dtype if none is given.
    func normal(_ shape: Shape, _ deviation: Float = 1, _ dtype: DType? = nil) -> Tensor {
        let tensor = arena.carve(shape, dtype ?? backend.computeDType, for: .workspace)
        if !arena.isMeasuring { fill(tensor.reshaped([shape.count]), deviation) }
        return tensor
    }

    /// A frozen weight: its product with normal numbers is about as large as they are.
    func weight(_ shape: Shape) -> Tensor { normal(shape, 1 / Float(shape[-1]).squareRoot()) }

    /// Of the compute dtype.
    func ring(_ shape: Shape) -> Ring {
        let size = max(1, shape.count * backend.computeDType.byteCount)
        let count = backend is CUDABackend ? ceilDiv(OpMemory.ringByteCount, size) : 1
        return Ring(all: normal(Shape([count] + shape.array)))
    }

    /// Float32, which parameters' gradients and statistics are, if no dtype is given.
    func zeros(_ shape: Shape, _ dtype: DType = .float32) -> Tensor {
        let tensor = arena.carve(shape, dtype, for: .workspace)
        if !arena.isMeasuring { backend.zero(tensor) }
        return tensor
    }

    func ids(_ shape: Shape, _ value: (Int) -> Int = { _ in 0 }) -> Tensor {
        let tensor = arena.carve(shape, .int32, for: .workspace)
        if !arena.isMeasuring {
            (0..<shape.count).map { Int32(value($0)) }.withUnsafeBytes { backend.upload($0, as: .int32, into: tensor) }
        }
        return tensor
    }

    /// An adapter as a step sees it whose layers keep their activations: factors in the compute dtype, gradients in float32.
    /// `lead` is the experts' axis.
    func adapter(_ lead: [Int] = [], rows: Int, inputs: Int, outputs: Int) -> LoRA {
        let a = Shape(lead + [s.A, inputs]), b = Shape(lead + [outputs, s.A])
        var adapter = LoRA(a: weight(a), b: normal(b, 0.1), da: zeros(a), db: zeros(b), scale: 2)
        if backend.keepsLowProducts { adapter.low = normal([rows, s.A]) }
        return adapter
    }

    private func fill(_ x_N: Tensor, _ deviation: Float) {
        var done = min(x_N.count, OpMemory.drawnCount)
        seed += 1
        backend.fillNormal(x_N.rows(0..<done), standardDeviation: deviation, seed: seed)
        while done < x_N.count {
            let count = min(done, x_N.count - done)
            backend.set(x_N.rows(done..<done + count), to: x_N.rows(0..<count))
            done += count
        }
    }
}
