package import MartletCore

/// The numbers of a master where they lie: floats, or halves.
struct MasterMemory {
    private let floats: Floats?
    private let upper: UnsafeMutablePointer<UInt16>?
    private let rest: UnsafeMutablePointer<Int16>?

    init(_ master: Master) {
        floats = master.rest == nil ? master.value.floats : nil
        upper = master.rest == nil ? nil : pointer(at: master.value.address)
        rest = master.rest.map { pointer(at: $0.address) }
    }

    /// Calls `body` with floats of which it may change elements `range`.
    func update(_ range: Range<Int>, _ body: (Floats) -> Void) {
        guard let upper, let rest else {
            if let floats { body(floats) }
            return
        }
        withUnsafeTemporaryAllocation(of: Float.self, capacity: range.count) { numbers in
            guard let base = numbers.baseAddress else { return }
            for i in range { base[i - range.lowerBound] = Master.joined(upper[i], rest[i]) }
            body(base - range.lowerBound)
            for i in range { (upper[i], rest[i]) = Master.split(base[i - range.lowerBound]) }
        }
    }
}

extension CPUBackend {
    package func split(_ pairs: [(x_N: Tensor, master: Master)]) {
        for (x_N, master) in pairs where x_N.count > 0 {
            precondition(x_N.count == master.count)
            let x = x_N.floats, memory = MasterMemory(master)
            workers.run(over: x_N.count, by: elementsPerTask) { range, _ in
                memory.update(range) { ($0 + range.lowerBound).update(from: x + range.lowerBound, count: range.count) }
            }
        }
    }
}
