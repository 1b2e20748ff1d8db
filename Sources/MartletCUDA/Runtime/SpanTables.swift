internal import MartletCore

/// Where packed sequences begin and how long they are, as cuDNN wants it, in device memory. A list that was seen before
/// is not sent again: a step's tiles come back in every layer.
final class SpanTables {
    struct Key: Hashable {
        var spans: [AttentionSpan]
        /// Sequences of the table; those after the spans are empty.
        var count: Int
        /// Key rows count from here.
        var firstKey: Int
        /// Elements of a row of queries, of keys, and of statistics.
        var queryRow, keyRow, logSumExpRow: Int
    }

    /// Element offsets, int64 [count + 1], and lengths, int32 [count]; each begins at a multiple of 16 bytes.
    struct Table {
        let address: UInt
        let count: Int

        private var offsetByteCount: UInt { UInt(roundUp(8 * (count + 1), to: 16)) }
        private var lengthByteCount: UInt { UInt(roundUp(4 * count, to: 16)) }
        var queryOffsets: UInt { address }
        var keyOffsets: UInt { address + offsetByteCount }
        var logSumExpOffsets: UInt { address + 2 * offsetByteCount }
        var queryCounts: UInt { address + 3 * offsetByteCount }
        var keyCounts: UInt { queryCounts + lengthByteCount }
        var byteCount: Int { Int(3 * offsetByteCount + 2 * lengthByteCount) }
    }

    static let byteCount = 1 << 20

    private let staging: Staging
    private var memory: Tensor?
    private var used = 0
    private var known: [Key: Table] = [:]

    init(_ staging: Staging) { self.staging = staging }

    func reserve(in arena: Arena) {
        let memory = arena.carve([SpanTables.byteCount], .uint8, for: .workspace)
        guard !arena.isMeasuring else { return }
        self.memory = memory
        forget()
    }

    static func fits(_ count: Int) -> Bool { Table(address: 0, count: count).byteCount <= byteCount }

    /// On the device before anything that is queued later.
    func table(_ key: Key) -> Table {
        if let table = known[key] { return table }
        let size = Table(address: 0, count: key.count).byteCount
        guard let memory else { preconditionFailure("reserveScratch comes before the first op") }
        // The stream's order keeps launches right that still read the old tables.
        if size > memory.byteCount - used { forget() }
        let table = Table(address: memory.address + UInt(used), count: key.count)
        used += roundUp(size, to: 256)
        known[key] = table
        SpanTables.bytes(key).withUnsafeBytes { staging.send($0, to: table.address) }
        return table
    }

    private func forget() {
        used = 0
        known = [:]
    }

    /// What a table holds.
    static func bytes(_ key: Key) -> [UInt8] {
        let table = Table(address: 0, count: key.count)
        // Empty sequences begin where the last one ends.
        let last = key.spans.last
        let ends = (
            (last?.queryStart ?? 0) + (last?.queryCount ?? 0), (last?.keyStart ?? 0) + (last?.keyCount ?? 0)
        )
        let rest = repeatElement(ends, count: key.count + 1 - key.spans.count)
        let starts = key.spans.map { ($0.queryStart, $0.keyStart) } + rest
        var bytes = [UInt8](repeating: 0, count: table.byteCount)
        bytes.withUnsafeMutableBytes { memory in
            func place<Value: FixedWidthInteger>(_ values: [Value], _ address: UInt) {
                let target = UnsafeMutableRawBufferPointer(rebasing: memory[Int(address)...])
                values.withUnsafeBytes { target.copyMemory(from: $0) }
            }
            place(starts.map { Int64($0.0 * key.queryRow) }, table.queryOffsets)
            place(starts.map { Int64(($0.1 - key.firstKey) * key.keyRow) }, table.keyOffsets)
            place(starts.map { Int64($0.0 * key.logSumExpRow) }, table.logSumExpOffsets)
            place(key.spans.map { Int32($0.queryCount) }, table.queryCounts)
            place(key.spans.map { Int32($0.keyCount) }, table.keyCounts)
        }
        return bytes
    }
}
