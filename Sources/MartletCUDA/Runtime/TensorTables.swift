internal import MartletCore

/// Lists of float32 tensors, and of masters, that one launch walks, as tables in device memory: each tensor is cut into chunks of one
/// size, and a launch has a block a chunk (`optimizer.cu`). A list that was seen before is not sent again.
final class TensorTables {
    /// `Entry` of optimizer.cu.
    struct Entry: Equatable {
        var value: UInt
        var gradient: UInt = 0
        var firstMoment: UInt = 0
        var secondMoment: UInt = 0
        var firstScale: UInt = 0
        var secondScale: UInt = 0
        var rest: UInt = 0
        var count: Int
        var weightDecay: Float = 0
        /// Its first chunk; known only on the device.
        var firstChunk: Int32 = 0

        init(_ value: Tensor) {
            precondition(value.dtype == .float32, "a table of tensors holds float32, not \(value.dtype)")
            self.value = value.address
            count = value.count
        }

        init(_ master: Master) {
            value = master.value.address
            rest = master.rest?.address ?? 0
            count = master.count
        }
    }

    struct Table {
        let tensorCount: Int
        /// Elements of a chunk.
        let chunk: Int
        let chunkCount: Int
        fileprivate var address: UInt = 0

        fileprivate init(_ entries: [Entry], chunk: Int) {
            tensorCount = entries.count
            self.chunk = chunk
            chunkCount = entries.reduce(0) { $0 + ceilDiv($1.count, chunk) }
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
        fileprivate var byteCount: Int { Int(sumAddress - address) + 8 * tensorCount }
    }

    private static let byteCount = 4 << 20
    /// The smallest chunk, which is the fastest; a list so large that its table would fill more than a quarter of the
    /// memory gets larger ones.
    private static let smallestChunk = 1 << 13

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
        if let found = known.first(where: { $0.entries == list }) { return found.table }
        var table = Table(list, chunk: TensorTables.smallestChunk)
        while table.byteCount > TensorTables.byteCount / 4, table.chunkCount > table.tensorCount {
            table = Table(list, chunk: 2 * table.chunk)
        }
        table.address = place(roundUp(table.byteCount, to: 256))
        known.append((list, table))
        send(list, table)
        return table
    }

    /// The next free piece; when there is none, all tables are forgotten. The stream's order keeps old launches right.
    private func place(_ byteCount: Int) -> UInt {
        guard let memory else { preconditionFailure("reserveScratch comes before the first op") }
        precondition(byteCount <= memory.byteCount, "a list of tensors needs a table of \(byteCount) bytes")
        if byteCount > memory.byteCount - used { forget() }
        defer { used += byteCount }
        return memory.address + UInt(used)
    }

    private func forget() {
        used = 0
        known = []
    }

    private func send(_ list: [Entry], _ table: Table) {
        var entries = list, owners: [Int32] = []
        for i in entries.indices {
            entries[i].firstChunk = Int32(owners.count)
            owners += repeatElement(Int32(i), count: ceilDiv(entries[i].count, table.chunk))
        }
        entries.withUnsafeBytes { staging.send($0, to: table.address) }
        owners.withUnsafeBytes { staging.send($0, to: table.ownerAddress) }
    }
}
