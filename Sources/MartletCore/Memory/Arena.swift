/// One block of a backend's memory, handed out front to back and never taken back.
///
/// Whoever needs memory carves it here under the name of the row it belongs to in the memory table. Carving the same
/// things from a *measuring* arena (no memory behind it) gives the plan: so the plan is what the run allocates, by
/// construction.
package final class Arena {
    /// What the memory is for; one row of the memory table.
    package enum Row: String, CaseIterable, Sendable {
        case weights = "weights"
        case adapters = "trained parameters"
        case gradients = "gradients"
        case optimizer = "optimizer state"
        case hidden = "hidden states"
        case kept = "kept activations"
        case layer = "one layer's weights, decoded"
        case workspace = "workspace"
        case cache = "key/value cache"
    }

    private let base: UInt?
    private let capacity: Int
    private let release: () -> Void
    /// Bytes carved so far.
    package private(set) var byteCount = 0
    private var rows: [Row: Int] = [:]

    /// An arena with no memory behind it, for planning.
    package static func measuring() -> Arena { Arena(base: nil, capacity: .max, release: {}) }

    /// An arena over `capacity` bytes at `base`; only backends call this.
    package init(base: UInt?, capacity: Int, release: @escaping () -> Void) {
        self.base = base
        self.capacity = capacity
        self.release = release
    }

    deinit { release() }

    package var isMeasuring: Bool { base == nil }

    /// The next free piece of memory of this shape, 256-byte aligned.
    package func carve(_ shape: Shape, _ dtype: DType = .float32, for row: Row) -> Tensor {
        let size = roundUp(shape.count * dtype.byteCount, to: 256)
        precondition(
            byteCount + size <= capacity, "arena overrun: the run carves more than it planned (\(row), \(shape))")
        defer {
            byteCount += size
            rows[row, default: 0] += size
        }
        return Tensor(address: (base ?? 0) + UInt(byteCount), dtype: dtype, shape: shape)
    }

    /// Bytes carved for `row`.
    package func byteCount(of row: Row) -> Int { rows[row, default: 0] }
}
