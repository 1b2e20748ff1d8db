package import MartletCore

/// The reference backend: float32, plain Swift, matrix products by OpenBLAS where the machine has it.
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
    /// What `reserveScratch` carved; every op lays its temporaries out here anew.
    var scratchMemory: Tensor?
    /// The widest product whose buffers OpenBLAS has already.
    var warmColumns = 0
    /// For tests: a copy is made when it is waited for, which is as late as it may be.
    package var copiesLate = false
    var lateCopies: [(x_N: Tensor, y_N: Tensor)] = []
    /// Partial results of the reductions over whole tensors, one for each fixed part.
    let partials: UnsafeMutablePointer<Double>

    /// `threads` nil: one for each processor. `usesBLAS` false: Martlet's own matrix product even where OpenBLAS is.
    package init(threads: Int? = nil, usesBLAS: Bool = true) {
        workers = Workers(count: max(1, threads ?? Workers.processorCount))
        product = usesBLAS ? MatrixProduct.library ?? .own : .own
        let plural = workers.count == 1 ? "thread" : "threads"
        let missing = usesBLAS ? ": install libopenblas0 for speed" : ""
        let source = product.libraryName ?? "own matrix product\(missing)"
        name = "cpu (\(source), \(workers.count) \(plural))"
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
