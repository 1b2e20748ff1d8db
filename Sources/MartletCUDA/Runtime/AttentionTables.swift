internal import MartletCore

/// One entry of a schedule, `Work` of flash.cuh: a block of queries or of keys of one span.
struct AttentionWork: Equatable {
    var query, queryCount, key, keyCount: Int32
    /// Index of the block in its span.
    var block: Int32 = 0
    /// Number of the span's first query block in the call.
    var tile: Int32 = 0
    var unused: (Int32, Int32) = (0, 0)

    init(_ span: AttentionSpan) {
        (query, queryCount) = (Int32(span.queryStart), Int32(span.queryCount))
        (key, keyCount) = (Int32(span.keyStart), Int32(span.keyCount))
    }

    static func == (a: AttentionWork, b: AttentionWork) -> Bool {
        (a.query, a.queryCount, a.key, a.keyCount, a.block, a.tile)
            == (b.query, b.queryCount, b.key, b.keyCount, b.block, b.tile)
    }
}

/// In which blocks a kernel walks the spans of a call, those with the most work first.
enum AttentionSchedule: Equatable {
    /// Whole spans, as they come.
    case spans
    /// Blocks of that many queries.
    case queries(Int)
    /// Blocks of that many keys, a span's in ascending order; their work is counted in blocks of `queryRows` queries.
    case keys(Int, queryRows: Int)

    func works(_ spans: [AttentionSpan]) -> [AttentionWork] {
        let spans = spans.filter { $0.queryCount > 0 }
        switch self {
        case .spans: return spans.map(AttentionWork.init)
        case .queries(let rows): return longestFirst(spans.flatMap { queryBlocks($0, rows) })
        case .keys(let rows, let queryRows):
            var works: [(AttentionWork, Int)] = [], tiles = 0
            for span in spans {
                works += keyBlocks(span, rows, queryRows, firstTile: tiles)
                tiles += ceilDiv(span.queryCount, queryRows)
            }
            return longestFirst(works)
        }
    }

    /// The blocks and the keys that their last queries see.
    private func queryBlocks(_ span: AttentionSpan, _ rows: Int) -> [(AttentionWork, Int)] {
        (0..<ceilDiv(span.queryCount, rows)).map { block in
            var work = AttentionWork(span)
            work.block = Int32(block)
            return (work, span.keyCount - span.queryCount + min(span.queryCount, (block + 1) * rows))
        }
    }

    /// The blocks and the blocks of queries that see them. A span without keys has a block too: the one that writes its
    /// queries' gradients.
    private func keyBlocks(
        _ span: AttentionSpan, _ rows: Int, _ queryRows: Int, firstTile: Int
    ) -> [(AttentionWork, Int)] {
        (0..<max(1, ceilDiv(span.keyCount, rows))).map { block in
            var work = AttentionWork(span)
            (work.block, work.tile) = (Int32(block), Int32(firstTile))
            let firstQuery = block == 0 ? 0 : max(0, block * rows - (span.keyCount - span.queryCount))
            return (work, ceilDiv(span.queryCount, queryRows) - firstQuery / queryRows)
        }
    }

    /// Equal ones in the order in which they came.
    private func longestFirst(_ works: [(AttentionWork, Int)]) -> [AttentionWork] {
        works.enumerated().sorted { ($1.element.1, $0.offset) < ($0.element.1, $1.offset) }.map(\.element.0)
    }
}

/// Schedules in device memory. The tiles of a step come back in every layer, so what was sent stays until the room is
/// used up.
final class AttentionTables {
    struct Table {
        let address: UInt
        let count: Int
        /// Blocks of queries, for `.keys`.
        let tiles: Int
    }

    private struct Known {
        let spans: [AttentionSpan]
        let schedule: AttentionSchedule
        let table: Table
    }

    private let staging: Staging
    private var memory: Tensor?
    private var used = 0
    private var known: [Known] = []

    init(_ staging: Staging) { self.staging = staging }

    /// Room for the schedules of a step whose tiles have `tokens` rows, even if every row is a sequence.
    func reserve(tokens: Int, in arena: Arena) {
        let memory = arena.carve([1 << 20 + 256 * tokens], .uint8, for: .workspace)
        guard !arena.isMeasuring else { return }
        self.memory = memory
        forget()
    }

    func table(_ schedule: AttentionSchedule, _ spans: [AttentionSpan]) -> Table {
        if let found = known.first(where: { $0.schedule == schedule && $0.spans == spans }) { return found.table }
        let works = schedule.works(spans)
        var tiles = 0
        if case .keys(_, let rows) = schedule { tiles = spans.reduce(0) { $0 + ceilDiv($1.queryCount, rows) } }
        let table = Table(address: send(works), count: works.count, tiles: tiles)
        known.append(Known(spans: spans, schedule: schedule, table: table))
        return table
    }

    /// The next free piece; when there is none, all schedules are forgotten. The stream's order keeps old launches right.
    private func send(_ works: [AttentionWork]) -> UInt {
        guard let memory else { preconditionFailure("reserveScratch comes before the first op") }
        let size = roundUp(works.count * MemoryLayout<AttentionWork>.stride, to: 256)
        if size > memory.byteCount - used { forget() }
        precondition(size <= memory.byteCount, "\(works.count) blocks exceed the schedules' memory")
        let address = memory.address + UInt(used)
        used += size
        works.withUnsafeBytes { bytes in
            staging.send(bytes.count, to: address) { range, memory in
                UnsafeMutableRawBufferPointer(start: memory, count: range.count).copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: bytes[range]))
            }
        }
        return address
    }

    private func forget() {
        used = 0
        known = []
    }
}
