/// Applies merges to a row of symbols: always the merge of lowest rank, of several the leftmost. Reused for many rows.
final class BPEMerger {
    /// The symbols, and how many bytes of the piece each stands for.
    private(set) var ids: UnsafeMutablePointer<Int32>
    private(set) var lengths: UnsafeMutablePointer<Int32>
    private(set) var count = 0

    private var capacity = 128
    // For short rows: the rank and result of each symbol with the next. For long rows: the neighbours.
    private var ranks: UnsafeMutablePointer<Int32>
    private var results: UnsafeMutablePointer<Int32>
    /// rank << 32 | position, as a binary heap.
    private var heap: [UInt64] = []

    private static let longestScan = 48

    init() {
        ids = .allocate(capacity: capacity)
        lengths = .allocate(capacity: capacity)
        ranks = .allocate(capacity: capacity)
        results = .allocate(capacity: capacity)
    }

    deinit {
        for buffer in [ids, lengths, ranks, results] { buffer.deallocate() }
    }

    func removeAll() { count = 0 }

    @inline(__always) func append(_ id: Int32, _ length: Int) {
        if count == capacity { grow() }
        ids[count] = id
        lengths[count] = Int32(truncatingIfNeeded: length)
        count += 1
    }

    private func grow() {
        func larger(_ old: UnsafeMutablePointer<Int32>) -> UnsafeMutablePointer<Int32> {
            let new = UnsafeMutablePointer<Int32>.allocate(capacity: capacity * 2)
            new.update(from: old, count: count)
            old.deallocate()
            return new
        }
        ids = larger(ids)
        lengths = larger(lengths)
        ranks.deallocate()
        results.deallocate()
        ranks = .allocate(capacity: capacity * 2)
        results = .allocate(capacity: capacity * 2)
        capacity *= 2
    }

    func merge(with merges: PairTable) {
        if count < 2 { return }
        if count <= BPEMerger.longestScan { scan(merges) } else { mergeLong(merges) }
    }

    /// For short rows: look for the best pair again and again.
    private func scan(_ merges: PairTable) {
        let ids = ids, lengths = lengths, ranks = ranks, results = results
        var last = count - 1
        for i in 0..<last { (ranks[i], results[i]) = merges.find(ids[i], ids[i + 1]) }
        while last > 0 {
            var best = 0
            var rank = ranks[0]
            var i = 1
            while i < last {
                if ranks[i] < rank { (best, rank) = (i, ranks[i]) }
                i += 1
            }
            if rank == Int32.max { break }
            ids[best] = results[best]
            lengths[best] &+= lengths[best + 1]
            i = best + 1
            while i < last {
                ids[i] = ids[i + 1]
                lengths[i] = lengths[i + 1]
                (ranks[i - 1], results[i - 1]) = (ranks[i], results[i])
                i += 1
            }
            last -= 1
            if best > 0 { (ranks[best - 1], results[best - 1]) = merges.find(ids[best - 1], ids[best]) }
            if best < last { (ranks[best], results[best]) = merges.find(ids[best], ids[best + 1]) }
        }
        count = last + 1
    }

    /// For long rows: a heap of candidate merges; an entry that no longer fits is dropped when it comes up.
    private func mergeLong(_ merges: PairTable) {
        let ids = ids, lengths = lengths, before = ranks, after = results
        let total = count
        for i in 0..<total { (before[i], after[i]) = (Int32(i - 1), i + 1 < total ? Int32(i + 1) : -1) }
        heap.removeAll(keepingCapacity: true)
        for i in 0..<total - 1 {
            let rank = merges.find(ids[i], ids[i + 1]).rank
            if rank != Int32.max { heap.append(UInt64(rank) << 32 | UInt64(i)) }
        }
        makeHeap()
        while let top = popHeap() {
            let i = Int(top & 0xFFFF_FFFF)
            if lengths[i] < 0 || after[i] < 0 { continue }
            let right = Int(after[i])
            let merge = merges.find(ids[i], ids[right])
            if UInt64(merge.rank) != top >> 32 || merge.rank == Int32.max { continue }
            ids[i] = merge.result
            lengths[i] &+= lengths[right]
            lengths[right] = -1  // Gone.
            after[i] = after[right]
            if after[i] >= 0 {
                let next = Int(after[i])
                before[next] = Int32(i)
                let rank = merges.find(ids[i], ids[next]).rank
                if rank != Int32.max { pushHeap(UInt64(rank) << 32 | UInt64(i)) }
            }
            if before[i] >= 0 {
                let rank = merges.find(ids[Int(before[i])], ids[i]).rank
                if rank != Int32.max { pushHeap(UInt64(rank) << 32 | UInt64(before[i])) }
            }
        }
        count = 0
        for i in 0..<total where lengths[i] >= 0 {
            (ids[count], lengths[count]) = (ids[i], lengths[i])
            count += 1
        }
    }

    private func makeHeap() {
        var i = heap.count / 2 - 1
        while i >= 0 {
            sink(i)
            i -= 1
        }
    }

    private func sink(_ start: Int) {
        heap.withUnsafeMutableBufferPointer { heap in
            var i = start
            let value = heap[i]
            while true {
                var child = 2 * i + 1
                if child >= heap.count { break }
                if child + 1 < heap.count, heap[child + 1] < heap[child] { child += 1 }
                if heap[child] >= value { break }
                heap[i] = heap[child]
                i = child
            }
            heap[i] = value
        }
    }

    private func popHeap() -> UInt64? {
        guard let top = heap.first, let last = heap.popLast() else { return nil }
        if !heap.isEmpty {
            heap[0] = last
            sink(0)
        }
        return top
    }

    private func pushHeap(_ value: UInt64) {
        heap.append(value)
        heap.withUnsafeMutableBufferPointer { heap in
            var i = heap.count - 1
            while i > 0 {
                let parent = (i - 1) / 2
                if heap[parent] <= value { break }
                heap[i] = heap[parent]
                i = parent
            }
            heap[i] = value
        }
    }
}
