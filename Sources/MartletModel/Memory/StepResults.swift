internal import MartletCore

/// What the host reads at the end of a step, in one piece: the GPU waits for each copy.
struct StepResults {
    /// The loss of each row.
    let loss_T: Tensor
    /// The routing's offsets of each sparse layer and tile, [sparse layers, tiles, E + 1].
    let offset_LE1: Tensor
    /// The sums of squares of the parameters' gradients, the bits of doubles.
    let squares_P: Tensor
    private let memory: Tensor

    init(tokens T: Int, offsets: Shape, parameters P: Int, in arena: Arena) {
        let ends = [4 * T, 4 * offsets.count, 8 * P].reduce(into: [0]) {
            $0.append(roundUp($0[$0.count - 1] + $1, to: 256))
        }
        let memory = arena.carve([ends[3]], .uint8, for: .workspace)
        func view(_ part: Int, _ shape: Shape, _ dtype: DType) -> Tensor {
            Tensor(address: memory.address + UInt(ends[part]), dtype: dtype, shape: shape)
        }
        self.memory = memory
        loss_T = view(0, [T], .float32)
        offset_LE1 = view(1, offsets, .int32)
        squares_P = view(2, [P], .int64)
    }

    /// All of it on the host.
    struct Values {
        let loss_T: [Float]
        let offset_LE1: [Int32]
        let squares_P: [Double]
    }

    func read(by backend: any Backend) -> Values {
        // What a failed device leaves is no number.
        var bytes = [UInt8](repeating: 0xFF, count: memory.count)
        bytes.withUnsafeMutableBytes { backend.download(memory, into: $0) }
        return bytes.withUnsafeBytes { bytes in
            func values<T>(_ tensor: Tensor, as type: T.Type) -> [T] {
                let start = Int(tensor.address - memory.address)
                let part = UnsafeRawBufferPointer(rebasing: bytes[start..<start + tensor.byteCount])
                return [T](part.bindMemory(to: type))
            }
            return Values(
                loss_T: values(loss_T, as: Float.self), offset_LE1: values(offset_LE1, as: Int32.self),
                squares_P: values(squares_P, as: UInt64.self).map(Double.init(bitPattern:)))
        }
    }
}
