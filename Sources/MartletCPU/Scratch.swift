package import MartletCore
import Synchronization

#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// Lays an op's temporaries out in the scratch memory, front to back, 64-byte aligned.
///
/// Every op has one struct that takes its pieces from a `Scratch`. `reserveScratch` makes the same structs, for the
/// largest shapes, from a measuring `Scratch` with no memory behind it: so the size is the formula of the layout.
struct Scratch {
    private let base: UInt
    private let capacity: Int
    private(set) var byteCount = 0

    /// Over reserved memory; with nil, nothing can be taken.
    init(_ memory: Tensor?) {
        base = memory?.address ?? 64
        capacity = memory?.byteCount ?? 0
    }

    private init() {
        base = 64
        capacity = .max
    }

    /// A scratch that only counts; its pieces must not be touched.
    static func measuring() -> Scratch { Scratch() }

    mutating func floats(_ count: Int) -> Floats { take(count) }
    mutating func ints(_ count: Int) -> Ints { take(count) }
    mutating func perWorker(_ workers: Int, _ count: Int) -> PerWorker {
        let stride = roundUp(count, to: 16)
        return PerWorker(base: take(stride * workers), stride: stride)
    }

    private mutating func take<Element>(_ count: Int) -> UnsafeMutablePointer<Element> {
        let size = roundUp(count * MemoryLayout<Element>.stride, to: 64)
        precondition(size <= capacity - byteCount, "an op's shapes exceed those given to reserveScratch")
        defer { byteCount += size }
        return pointer(at: base + UInt(byteCount))
    }
}

/// One piece of scratch for each worker.
struct PerWorker {
    fileprivate let base: Floats
    fileprivate let stride: Int
    subscript(worker: Int) -> Floats { base + worker * stride }
}

extension CPUBackend {
    package func reserveScratch(for shapes: ScratchShapes, in arena: Arena) {
        let memory = arena.carve([scratchByteCount(for: shapes)], .uint8, for: .workspace)
        if arena.isMeasuring { warmUp(columns: max(shapes.widest, shapes.vocabulary)) } else { scratchMemory = memory }
    }

    /// Has every thread take what products of this width pack into: OpenBLAS's buffers, or pages of its own stack. Taken
    /// while planning, they are part of the process that the plan measures.
    private func warmUp(columns: Int) {
        guard columns > warmColumns else { return }
        warmColumns = columns
        // Untouched pages read as zeros and take no memory. Up to 16 rows would pack less.
        let depth = 512, rows = 17, size = (columns * (depth + workers.count * rows) + rows * depth) * 4
        guard let base = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0), base != MAP_FAILED
        else { return }
        defer { munmap(base, size) }
        let b = base.assumingMemoryBound(to: Float.self), a = b + columns * depth, c = a + rows * depth
        // As many tasks as workers, each waiting for the others, so that every thread does one.
        let waiting = Atomic<Int>(workers.count)
        workers.run(workers.count) { task, _ in
            waiting.subtract(1, ordering: .relaxed)
            let patience = ContinuousClock.now + .milliseconds(20)
            while waiting.load(ordering: .relaxed) > 0, ContinuousClock.now < patience {}
            product(
                rows, columns, depth, Operand(a, depth), Operand(b, columns), into: c + task * rows * columns, columns)
        }
    }

    /// The most that any one op takes; ops do not share scratch across calls.
    private func scratchByteCount(for shapes: ScratchShapes) -> Int {
        let threads = workers.count
        let width = max(shapes.hidden, shapes.widest)
        let layouts: [(inout Scratch) -> Void] = [
            { _ = NormScratch(&$0, rows: shapes.tokens, width: max(shapes.hidden, shapes.headSize)) },
            { _ = LinearScratch(&$0, rows: shapes.tokens, width: width, rank: shapes.rank, threads: threads) },
            { _ = AttentionScratch(&$0, shapes: shapes, threads: threads) },
            { _ = ExpertsScratch(&$0, ExpertsSize(shapes), trains: shapes.trains, threads: threads) },
            {
                _ = CrossEntropyScratch(
                    &$0, rows: shapes.tokens, hidden: shapes.hidden, vocabulary: shapes.vocabulary)
            },
        ]
        return layouts.reduce(0) { most, layout in
            var scratch = Scratch.measuring()
            layout(&scratch)
            return max(most, scratch.byteCount)
        }
    }
}
