import Dispatch
import Synchronization

#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// The threads of a backend.
///
/// Work is cut into tasks by its shape and never by the number of threads; a task writes what no other task of its run
/// touches. So it does not matter which thread takes a task, or when, and the result is the same bytes.
final class Workers: Sendable {
    let count: Int
    private let next = Atomic<Int>(0)

    init(count: Int) { self.count = count }

    static var processorCount: Int { max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))) }

    /// Runs `body(task, worker)` for every task; `worker` is below `count` and tells which scratch to use.
    func run(_ taskCount: Int, _ body: (_ task: Int, _ worker: Int) -> Void) {
        if count == 1 || taskCount <= 1 {
            for task in 0..<max(0, taskCount) { body(task, 0) }
            return
        }
        next.store(0, ordering: .relaxed)
        withoutActuallyEscaping(body) { body in
            // Tasks write to places of their own, which the compiler cannot know.
            nonisolated(unsafe) let body = body
            DispatchQueue.concurrentPerform(iterations: min(count, taskCount)) { worker in
                while true {
                    let task = next.wrappingAdd(1, ordering: .relaxed).oldValue
                    if task >= taskCount { return }
                    body(task, worker)
                }
            }
        }
    }

    /// Runs `body(range, worker)` over `0..<total` in ranges of `size`.
    func run(over total: Int, by size: Int, _ body: (_ range: Range<Int>, _ worker: Int) -> Void) {
        run((total + size - 1) / size) { task, worker in
            body(task * size..<min(total, (task + 1) * size), worker)
        }
    }
}
