import MartletCore
import Testing

@testable import MartletCUDA

/// What kernels and libraries read as tables: made on the host, byte for byte.
@Suite struct TableTests {
    private let spans = [
        AttentionSpan(queryStart: 0, queryCount: 130, keyStart: 64, keyCount: 194),
        AttentionSpan(queryStart: 130, queryCount: 0, keyStart: 258, keyCount: 5),
        AttentionSpan(queryStart: 130, queryCount: 1, keyStart: 263, keyCount: 1),
        AttentionSpan(queryStart: 131, queryCount: 64, keyStart: 264, keyCount: 64),
    ]

    /// The kernels assert the same numbers when they are compiled.
    @Test func structsAreAsLongAsTheKernels() {
        #expect(MemoryLayout<AttentionWork>.stride == 32, "Work of flash.cuh")
        #expect(MemoryLayout<TensorTables.Entry>.stride == 72, "Entry of optimizer.cu")
        #expect(MemoryLayout<TensorMap>.stride == 128, "TensorMap of sm90.cuh")
    }

    @Test func spanTables() {
        // Six sequences, of which the last two are empty; elements of a row 10, 4 and 3.
        let key = SpanTables.Key(spans: spans, count: 6, firstKey: 64, queryRow: 10, keyRow: 4, logSumExpRow: 3)
        let table = SpanTables.Table(address: 0, count: 6), bytes = SpanTables.bytes(key)
        #expect(bytes.count == table.byteCount)
        func numbers<Value: FixedWidthInteger>(_ address: UInt, _ count: Int, as: Value.Type) -> [Int] {
            #expect(address % 16 == 0)
            return bytes.withUnsafeBytes { memory in
                (0..<count).map {
                    Int(
                        memory.loadUnaligned(
                            fromByteOffset: Int(address) + $0 * MemoryLayout<Value>.size, as: Value.self))
                }
            }
        }
        let queries = [0, 130, 130, 131, 195, 195, 195], keys = [0, 194, 199, 200, 264, 264, 264]
        #expect(numbers(table.queryOffsets, 7, as: Int64.self) == queries.map { 10 * $0 })
        #expect(numbers(table.keyOffsets, 7, as: Int64.self) == keys.map { 4 * $0 })
        #expect(numbers(table.logSumExpOffsets, 7, as: Int64.self) == queries.map { 3 * $0 })
        #expect(numbers(table.queryCounts, 6, as: Int32.self) == [130, 0, 1, 64, 0, 0])
        #expect(numbers(table.keyCounts, 6, as: Int32.self) == [194, 5, 1, 64, 0, 0])
        #expect(SpanTables.fits(6) && !SpanTables.fits(SpanTables.byteCount / 32))
    }

    /// Every block of queries of every span that has any, those that see the most keys first.
    @Test func queryBlocks() {
        let works = AttentionSchedule.queries(64).works(spans)
        #expect(works.map(\.query) == [0, 0, 0, 131, 130])
        #expect(works.map(\.block) == [2, 1, 0, 0, 0])
        #expect(works.map(\.keyCount) == [194, 194, 194, 64, 1])
    }

    /// Every block of keys, those that the most queries see first, with the number of its span's first block of queries.
    @Test func keyBlocks() {
        let works = AttentionSchedule.keys(128, queryRows: 64).works(spans)
        #expect(works.map(\.key) == [64, 64, 263, 264])
        #expect(works.map(\.block) == [0, 1, 0, 0])
        #expect(works.map(\.tile) == [0, 0, 3, 4])
        let unseen = [AttentionSpan(queryStart: 0, queryCount: 3, keyStart: 0, keyCount: 0)]
        #expect(AttentionSchedule.keys(128, queryRows: 64).works(unseen).count == 1, "writes its queries' gradients")
    }
}

/// How attention's backward pass on Hopper is divided.
@Suite struct HopperBackwardTests {
    private func shape(_ spans: [AttentionSpan], heads G: Int = 4, group: Int = 8) -> HopperBackward {
        let rows = spans.map { $0.queryStart + $0.queryCount }.max() ?? 0
        return HopperBackward(
            items: HopperBackward.schedule.works(spans).count, spans: spans, rows: rows,
            keyValueHeads: G, group: group, multiprocessors: 132)
    }

    private func spans(_ count: Int, _ queries: Int, keys: Int? = nil) -> [AttentionSpan] {
        (0..<count).map {
            AttentionSpan(
                queryStart: $0 * queries, queryCount: queries, keyStart: $0 * (keys ?? queries),
                keyCount: keys ?? queries)
        }
    }

    @Test func aHeadIsAnItemWhereItHasStepsEnough() {
        #expect(shape(spans(1, 4096)).parts == 8 && shape(spans(1, 4096)).together == 8)
        #expect(shape(spans(1, 16384)).parts == 8 && shape(spans(1, 16384)).together == 2)
        // One of the longest items for every cluster, or nine for ten.
        #expect(shape(spans(1, 9000)).together == 4 && shape(spans(1, 8192)).together == 4)
        #expect(shape(spans(1, 3072)).parts == 8 && shape(spans(1, 3072)).together == 16)
        // Two blocks of the GPU's multiprocessors would not be filled otherwise.
        #expect(shape(spans(2, 512)).parts == 8)
        #expect(shape(spans(16, 512)).parts == 1)
        #expect(shape(spans(1, 16384, keys: 262_144)).parts == 1)
        #expect(shape(spans(1, 4096), heads: 32, group: 1).shares == 0)
    }

    /// Parts that share sums of dk and dv do not run side by side, and what they share has room.
    @Test func sharesHaveRoom() {
        for (count, rows) in [(1, 1), (1, 1024), (3, 1000), (9, 900), (1, 8192), (64, 1), (1, 16384)] {
            for (G, group) in [(4, 8), (1, 8), (2, 3), (8, 1)] {
                let shape = shape(spans(count, rows), heads: G, group: group)
                #expect((shape.parts * G).isMultiple(of: shape.together) && group.isMultiple(of: shape.parts))
                #expect(shape.parts == 1 ? shape.shares == 0 : shape.shares * G >= min(shape.together, group * G))
                let most = HopperBackward.mostShares(rows: count * rows, keyValueHeads: G, multiprocessors: 132)
                #expect(shape.blocks * shape.shares <= most)
            }
        }
    }
}
