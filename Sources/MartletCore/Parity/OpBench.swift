/// Memory of a backend in which single ops are tried: inputs come from arrays, outputs start as NaN between sentinels.
package final class OpBench {
    package let backend: any Backend
    private let arena: Arena
    private var frames: [Tensor] = []

    /// Elements in front of and behind each tensor that no op may touch.
    private static let margin = 64
    private static let sentinel: Float = -7.25

    package init(_ backend: any Backend, shapes: ScratchShapes, byteCount: Int = 1 << 24) throws(MartletError) {
        self.backend = backend
        let plan = Arena.measuring()
        backend.reserveScratch(for: shapes, in: plan)
        let total = plan.byteCount + byteCount
        arena = try backend.makeArena(byteCount: total)
        // All ones is NaN: an op that reads scratch memory before writing it cannot hide.
        let whole = Tensor(address: arena.carve([0], .uint8, for: .workspace).address, dtype: .uint8, shape: [total])
        [UInt8](repeating: 0xFF, count: total).withUnsafeBytes { backend.upload($0, as: .uint8, into: whole) }
        backend.reserveScratch(for: shapes, in: arena)
    }

    /// A tensor of these values, in the backend's compute dtype if none is given.
    package func tensor(_ values: [Float], _ shape: Shape, _ dtype: DType? = nil) -> Tensor {
        precondition(values.count == shape.count, "\(values.count) values for \(shape)")
        let edge = [Float](repeating: OpBench.sentinel, count: OpBench.margin)
        let frame = arena.carve([shape.count + 2 * OpBench.margin], dtype ?? backend.computeDType, for: .workspace)
        (edge + values + edge).withUnsafeBytes { backend.upload($0, as: .float32, into: frame) }
        frames.append(frame)
        return inner(frame, shape)
    }

    package func ids(_ values: [Int32], _ shape: Shape) -> Tensor {
        let tensor = arena.carve(shape, .int32, for: .workspace)
        values.withUnsafeBytes { backend.upload($0, as: .int32, into: tensor) }
        return tensor
    }

    /// Bytes, at least as many as values, between sentinels.
    package func bytes(_ values: [UInt8]) -> Tensor {
        let words = ceilDiv(values.count, 4), room = tensor([Float](repeating: .nan, count: words), [words], .float32)
        let bytes = Tensor(address: room.address, dtype: .uint8, shape: [values.count])
        values.withUnsafeBytes { backend.upload($0, as: .uint8, into: bytes) }
        return bytes
    }

    /// A master of these numbers; its halves by the backend's own op.
    package func master(_ values: [Float], inHalves: Bool) -> Master {
        let x_N = tensor(values, [values.count], .float32)
        guard inHalves else { return Master(value: x_N) }
        let rest = bytes([UInt8](repeating: 0, count: 2 * values.count))
        let master = Master(
            value: output([values.count], .bfloat16),
            rest: Tensor(address: rest.address, dtype: .int16, shape: [values.count]))
        backend.split([(x_N, master)])
        return master
    }

    package func bytes(_ tensor: Tensor) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: tensor.count) { buffer, count in
            backend.download(tensor, into: UnsafeMutableRawBufferPointer(buffer))
            count = tensor.count
        }
    }

    /// A tensor that an op is to fill: NaN, or -1 for ids.
    package func output(_ shape: Shape, _ dtype: DType? = nil) -> Tensor {
        dtype == .int32
            ? ids([Int32](repeating: -1, count: shape.count), shape)
            : tensor([Float](repeating: .nan, count: shape.count), shape, dtype)
    }

    package func values(_ tensor: Tensor) -> [Float] {
        if tensor.dtype == .float32 {
            return [Float](unsafeUninitializedCapacity: tensor.count) { buffer, count in
                backend.download(tensor, into: UnsafeMutableRawBufferPointer(buffer))
                count = tensor.count
            }
        }
        let bits = [UInt16](unsafeUninitializedCapacity: tensor.count) { buffer, count in
            backend.download(tensor, into: UnsafeMutableRawBufferPointer(buffer))
            count = tensor.count
        }
        return [Float](unsafeUninitializedCapacity: tensor.count) { buffer, count in
            bits.withUnsafeBytes { convertToFloat($0, as: tensor.dtype, into: buffer) }
            count = tensor.count
        }
    }

    package func ids(_ tensor: Tensor) -> [Int32] {
        [Int32](unsafeUninitializedCapacity: tensor.count) { buffer, count in
            backend.download(tensor, into: UnsafeMutableRawBufferPointer(buffer))
            count = tensor.count
        }
    }

    /// Whether every op so far has kept within its tensors.
    package var sentinelsAreIntact: Bool {
        frames.allSatisfy { frame in
            let all = values(frame)
            return (all.prefix(OpBench.margin) + all.suffix(OpBench.margin)).allSatisfy { $0 == OpBench.sentinel }
        }
    }

    private func inner(_ frame: Tensor, _ shape: Shape) -> Tensor {
        Tensor(
            address: frame.address + UInt(OpBench.margin * frame.dtype.byteCount), dtype: frame.dtype, shape: shape)
    }
}
