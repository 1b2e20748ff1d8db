package import MartletCore

/// The reference backend: float32, plain Swift, with the heavy loops by AVX2, AVX-512 or OpenBLAS where the machine
/// has them.
///
/// It is the definition of every op, and a trainer for machines without a GPU. Reductions have a fixed order and work
/// is cut by shape only, so the same inputs give the same bytes whatever the number of threads.
package final class CPUBackend: Backend {
    package let computeDType = DType.float32
    package let name: String
    package let preferredTileTokens = 2048
    package let fetchesWeightsSlowly = false
    package let keepsLowProducts = false

    let workers: Workers
    let product: MatrixProduct
    let loops: RowLoops
    /// What `reserveScratch` carved; every op lays its temporaries out here anew.
    var scratchMemory: Tensor?
    /// The widest product whose buffers every thread has already.
    var warmColumns = 0
    /// For tests: a copy is made when it is waited for, which is as late as it may be.
    package var copiesLate = false
    var lateCopies: [(x_N: Tensor, y_N: Tensor)] = []
    /// Partial results of the reductions over whole tensors, one for each fixed part.
    let partials: UnsafeMutablePointer<Double>

    /// `threads` nil: one for each processor. `arithmetic` nil: the fastest.
    package init(threads: Int? = nil, arithmetic: Arithmetic? = nil) {
        workers = Workers(count: max(1, threads ?? Workers.processorCount))
        let arithmetic = arithmetic ?? Arithmetic.available[0]
        product = MatrixProduct(arithmetic)
        loops = RowLoops(level: arithmetic.level)
        let plural = workers.count == 1 ? "thread" : "threads"
        name = "cpu (\(arithmetic.name), \(workers.count) \(plural))"
        partials = .allocate(capacity: CPUBackend.partCount)
    }

    deinit { partials.deallocate() }

    /// Every op has done its work when it returns, and none can fail.
    package func finish() {}

    /// An empty layout over the scratch memory, for one op.
    func scratch() -> Scratch { Scratch(scratchMemory) }
}

typealias Floats = UnsafeMutablePointer<Float>
typealias Ints = UnsafeMutablePointer<Int32>

extension Tensor {
    /// The elements, which are float32.
    var floats: Floats {
        precondition(dtype == .float32, "the CPU backend computes in float32, not \(dtype)")
        return pointer(at: address)
    }

    /// The elements, which are int32.
    var ints: Ints {
        precondition(dtype == .int32, "ids are int32, not \(dtype)")
        return pointer(at: address)
    }
}

/// The memory at `address`, which an arena gave out.
func pointer<Element>(at address: UInt) -> UnsafeMutablePointer<Element> {
    guard let pointer = UnsafeMutablePointer<Element>(bitPattern: address) else {
        preconditionFailure("a tensor of a measuring arena has no memory")
    }
    return pointer
}
