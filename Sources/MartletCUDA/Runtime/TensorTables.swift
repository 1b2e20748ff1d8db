internal import MartletCore

/// Lists of float32 tensors that one launch walks, as tables in device memory: each tensor is cut into chunks of a fixed
/// size, and a launch has a block a chunk (`optimizer.cu`). A list that was seen before is not sent again.
final class TensorTables {
    /// `Entry` of optimizer.cu.
    struct Entry: Equatable {
        var value: UInt
        var gradient: UInt = 0
        var firstMoment: UInt = 0
        var secondMoment: UInt = 0
        var count: Int
        var weightDecay: Float = 0
        /// Its first chunk; `table(of:)` fills it in.
        var chunk: Int32 = 0

        init(_ value: Tensor) {
            precondition(value.dtype == .float32, "a table of tensors holds float32, not \(value.dtype)")
            self.value = value.address
            count = value.count
        }
    }

    struct Table {
        let tensorCount: Int
        let chunkCount: Int
        fileprivate let address: UInt
        fileprivate let byteCount: Int

        fileprivate init(address: UInt, tensorCount: Int, chunkCount: Int) {
            self.address = address
            self.tensorCount = tensorCount
            self.chunkCount = chunkCount
            let owners = roundUp(4 * chunkCount, to: 8)
            byteCount = roundUp(
                MemoryLayout<Entry>.stride * tensorCount + owners + 8 * (chunkCount + tensorCount), to: 256)
        }

        var entries: KernelArgument { .address(address) }
        /// The tensor of each chunk, int32.
        var owners: KernelArgument { .address(ownerAddress) }
        /// Room for a double a chunk.
        var partials: KernelArgument { .address(partialAddress) }
        /// Room for a double a tensor.
        var sums: KernelArgument { .address(sumAddress) }

        fileprivate var ownerAddress: UInt { address + UInt(MemoryLayout<Entry>.stride * tensorCount) }
        private var partialAddress: UInt { ownerAddress + UInt(roundUp(4 * chunkCount, to: 8)) }
        var sumAddress: UInt { partialAddress + UInt(8 * chunkCount) }
    }

    static let byteCount = 4 << 20
    static let chunk = 1 << 14

    private let staging: Staging
    private var memory: Tensor?
    private var used = 0
    private var known: [(entries: [Entry], table: Table)] = []

    init(_ staging: Staging) { self.staging = staging }

    func reserve(in arena: Arena) {
        let memory = arena.carve([TensorTables.byteCount], .uint8, for: .workspace)
        guard !arena.isMeasuring else { return }
        self.memory = memory
        forget()
    }

    /// The table of these tensors, on the device before anything that is queued later.
    func table(of list: [Entry]) -> Table {
        var entries = list, chunkCount = 0
        for i in entries.indices {
            entries[i].chunk = Int32(chunkCount)
            chunkCount += ceilDiv(entries[i].count, TensorTables.chunk)
        }
        if let found = known.first(where: { $0.entries == entries }) { return found.table }
        let table = place(tensors: entries.count, chunks: chunkCount)
        known.append((entries, table))
        send(entries, table)
        return table
    }

    /// The next free piece; when there is none, all tables are forgotten. The stream's order keeps old launches right.
    private func place(tensors: Int, chunks: Int) -> Table {
        guard let memory else { preconditionFailure("reserveScratch comes before the first op") }
        func table() -> Table {
            Table(address: memory.address + UInt(used), tensorCount: tensors, chunkCount: chunks)
        }
        if table().byteCount > memory.byteCount - used { forget() }
        let table = table()
        precondition(table.byteCount <= memory.byteCount, "\(tensors) tensors of \(chunks) chunks exceed the table")
        used += table.byteCount
        return table
    }

    private func forget() {
        used = 0
        known = []
    }

    private func send(_ entries: [Entry], _ table: Table) {
        let owners = entries.indices.flatMap { i in
            repeatElement(Int32(i), count: ceilDiv(entries[i].count, TensorTables.chunk))
        }
        entries.withUnsafeBytes { send($0, to: table.address) }
        owners.withUnsafeBytes { send($0, to: table.ownerAddress) }
    }

    private func send(_ bytes: UnsafeRawBufferPointer, to address: UInt) {
        staging.send(bytes.count, to: address) { range, memory in
            UnsafeMutableRawBufferPointer(start: memory, count: range.count).copyMemory(
                from: UnsafeRawBufferPointer(rebasing: bytes[range]))
        }
    }
}
