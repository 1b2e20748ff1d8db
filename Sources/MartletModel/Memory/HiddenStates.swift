internal import MartletCore

/// The hidden states entering each layer, and the last: on the device all of them, or, with homes in host memory, two in
/// turns: what the forward pass leaves goes home behind the layer that follows, and comes back before its backward pass.
final class HiddenStates {
    private let slots: [Tensor]
    /// Of all but the last, which the loss uses up at once; none where the slots hold everything.
    private let homes: [Tensor]
    private let backend: any Backend
    private var leaving: [Int: Transfer] = [:]
    private var coming: [Int: Transfer] = [:]

    /// `count` of them; `homes` says whether they leave. Without a backward pass two are enough.
    init(
        count: Int, _ shape: Shape, trains: Bool, leaves: Bool, _ backend: any Backend, in memory: Memory
    ) {
        self.backend = backend
        slots = (0..<(trains && !leaves ? count : min(2, count))).map { _ in
            memory.device.carve(shape, backend.computeDType, for: .hidden)
        }
        homes = (0..<(leaves ? count - 1 : 0)).map { _ in
            memory.host.carve(shape, backend.computeDType, for: .hidden)
        }
    }

    subscript(index: Int) -> Tensor { slots[index % slots.count] }

    /// Comes before anything is written at `index`.
    func beginWriting(_ index: Int) {
        guard let transfer = leaving.removeValue(forKey: index % slots.count) else { return }
        backend.wait(for: transfer)
    }

    /// Comes when the rows of `index` are written that a backward pass will want.
    func finishWriting(_ index: Int, rows: Range<Int>) {
        guard index < homes.count, !rows.isEmpty else { return }
        leaving[index % slots.count] = backend.transfer(self[index].rows(rows), to: homes[index].rows(rows))
    }

    /// Brings the rows of `index` back, into a slot that nobody reads any more.
    func fetch(_ index: Int, rows: Range<Int>) {
        guard homes.indices.contains(index) else { return }
        beginWriting(index)
        coming[index] = backend.transfer(homes[index].rows(rows), to: self[index].rows(rows))
    }

    /// Comes before anything is read at `index`.
    func wait(for index: Int) {
        guard let transfer = coming.removeValue(forKey: index) else { return }
        backend.wait(for: transfer)
    }
}
