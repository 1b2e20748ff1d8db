internal import MartletCore

/// Tensors that every layer, or every tile of every layer, has of its own: on the device all of them; or, with homes in host
/// memory, a few in turns: what the forward pass leaves goes home behind the layers that follow, and comes back before the backward
/// pass.
final class LayerTensors {
    private let slots: [[Tensor]]
    /// Of the first `count`, evenly spread; none where the slots hold everything.
    private let homes: [[Tensor]]
    private let count: Int
    private let backend: any Backend
    /// What each slot holds, or will when what is coming is there.
    private var held: [Int?]
    private var leaving: [Int: [Transfer]] = [:]
    private var coming: [Int: [Transfer]] = [:]

    /// `slots` of them on the device, and of the first `count` as many in host memory as there are `homes`.
    init(
        _ tensors: [(shape: Shape, dtype: DType)], slots: Int, homes: Int, of count: Int, for row: Arena.Row,
        _ backend: any Backend, in memory: Memory
    ) {
        self.backend = backend
        self.count = count
        self.slots = (0..<slots).map { _ in tensors.map { memory.device.carve($0.shape, $0.dtype, for: row) } }
        self.homes = (0..<homes).map { _ in tensors.map { memory.host.carve($0.shape, $0.dtype, for: row) } }
        held = Array(repeating: nil, count: slots)
    }

    subscript(index: Int) -> [Tensor] { slots[index % slots.count] }

    private func home(of index: Int) -> [Tensor]? {
        guard 0 <= index, index < count else { return nil }
        let before = index * homes.count / count
        return before < (index + 1) * homes.count / count ? homes[before] : nil
    }

    /// Comes before anything is written at `index`.
    func beginWriting(_ index: Int) {
        let slot = index % slots.count
        leaving.removeValue(forKey: slot)?.forEach(backend.wait)
        held[slot] = index
    }

    /// Comes when the rows of `index` are written that a backward pass will want.
    func finishWriting(_ index: Int, rows: Range<Int>) {
        guard let home = home(of: index), !rows.isEmpty else { return }
        leaving[index % slots.count] = transfer(self[index], to: home, rows)
    }

    /// Brings the rows of `index` back, into a slot that nobody reads any more; nothing to do where they still are.
    func fetch(_ index: Int, rows: Range<Int>) {
        guard let home = home(of: index), held[index % slots.count] != index else { return }
        beginWriting(index)
        coming[index] = transfer(home, to: self[index], rows)
    }

    /// Comes before anything is read at `index`.
    func wait(for index: Int) {
        coming.removeValue(forKey: index)?.forEach(backend.wait)
    }

    /// Comes before `index` is read and then written over, in a backward pass: whether what the forward pass wrote is there.
    func recall(_ index: Int) -> Bool {
        wait(for: index)
        let isThere = held[index % slots.count] == index
        beginWriting(index)
        return isThere
    }

    private func transfer(_ from: [Tensor], to: [Tensor], _ rows: Range<Int>) -> [Transfer] {
        zip(from, to).map { backend.transfer($0.rows(rows), to: $1.rows(rows)) }
    }
}
