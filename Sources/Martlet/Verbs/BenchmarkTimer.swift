internal import MartletCUDA
internal import MartletCore

#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// One op at one shape, ready to run again and again.
struct TimedOp {
    var name: String
    var shape: String
    /// Floating-point operations and bytes moved that it cannot do without.
    var flops = 0.0
    var bytes: Double
    /// Once, before all calls.
    var setUp: () -> Void = {}
    /// Before each call, outside the time: restores what a call uses up.
    var prepare: (() -> Void)? = nil
    /// Gets the number of the call.
    var body: (Int) -> Void
}

/// Times ops: by the GPU's clock, or by the host's. Calls that follow each other on a GPU take at least the time of their
/// launches, some 4 us each, and ops that return numbers to the host take its answer's way too.
struct OpTimer {
    let backend: any Backend

    /// Median milliseconds of a call, warmed up.
    func milliseconds(of op: TimedOp) throws(MartletError) -> Double {
        op.setUp()
        if let cuda = backend as? CUDABackend { return try milliseconds(of: op, on: cuda) }
        return try hostMilliseconds(of: op)
    }

    /// The median of five rounds of about 20 ms.
    private func milliseconds(of op: TimedOp, on cuda: CUDABackend) throws(MartletError) -> Double {
        // The first call compiles, plans and sends tables.
        op.prepare?()
        op.body(0)
        try cuda.finish()
        let once = try cuda.deviceMilliseconds(repeats: 1, preparing: op.prepare, op.body)
        let repeats = min(max(Int(20 / max(once, 0.01)), 3), 200)
        var times: [Double] = []
        for _ in 0..<5 {
            times.append(try cuda.deviceMilliseconds(repeats: repeats, preparing: op.prepare, op.body))
        }
        return max(times.sorted()[times.count / 2], 1e-6)
    }

    /// Milliseconds of the fastest call of a GPU that has rested: too few to bring its clock down.
    func restedMilliseconds(of op: TimedOp, on cuda: CUDABackend) throws(MartletError) -> Double {
        op.body(0)
        try cuda.finish()
        usleep(500_000)
        var best = Double.infinity
        for _ in 0..<20 { best = min(best, try cuda.deviceMilliseconds(repeats: 1, op.body)) }
        return max(best, 1e-6)
    }

    /// At least five calls, at most about half a second.
    private func hostMilliseconds(of op: TimedOp) throws(MartletError) -> Double {
        var times: [Double] = []
        func call() throws(MartletError) {
            op.prepare?()
            let watch = Stopwatch()
            op.body(times.count)
            try backend.finish()
            times.append(watch.seconds * 1000)
        }
        try call()
        times = []
        let whole = Stopwatch()
        while times.count < 5 || (whole.seconds < 0.5 && times.count < 200) { try call() }
        return max(times.sorted()[times.count / 2], 1e-6)
    }
}

/// What the backend does at best, measured in the same run: what the ops' shares are shares of.
enum Roofs {
    /// Rows and columns of the matrices, large enough for the full speed.
    static func productSide(of backend: any Backend) -> Int { backend is CUDABackend ? 8192 : 1024 }

    /// GFLOP/s of a square matrix product of random numbers; `rested`, what a GPU reaches for a moment, at its highest clock.
    static func gigaflops(of backend: any Backend, rested: Bool = false) throws(MartletError) -> Double {
        let side = productSide(of: backend), dtype = backend.computeDType
        let arena = try backend.makeArena(byteCount: 3 * side * side * dtype.byteCount)
        defer { withExtendedLifetime(arena) {} }
        let square = (0..<3).map { _ in arena.carve([side, side], dtype, for: .workspace) }
        for (seed, matrix) in square.enumerated() {
            backend.fillNormal(matrix, standardDeviation: 1, seed: UInt64(seed))
        }
        let product = TimedOp(name: "product", shape: "", bytes: 0) { _ in
            backend.linear(square[0], Linear(weight_OI: square[1]), firstRow: 0, into: square[2], adds: false)
        }
        let timer = OpTimer(backend: backend), flops = 2 * Double(side * side * side)
        if rested, let cuda = backend as? CUDABackend {
            return flops / (try timer.restedMilliseconds(of: product, on: cuda)) / 1e6
        }
        return flops / (try timer.milliseconds(of: product)) / 1e6
    }

    /// GB/s, read and written together, of a copy or an addition far larger than the caches, whichever is faster.
    static func gigabytes(of backend: any Backend) throws(MartletError) -> Double {
        let size = backend is CUDABackend ? 1 << 28 : 1 << 27, dtype = backend.computeDType
        let arena = try backend.makeArena(byteCount: 2 * size)
        defer { withExtendedLifetime(arena) {} }
        let pair = (0..<2).map { _ in arena.carve([size / dtype.byteCount], dtype, for: .workspace) }
        for tensor in pair { backend.zero(tensor) }
        let copy = TimedOp(name: "set", shape: "", bytes: 0) { _ in backend.set(pair[1], to: pair[0]) }
        let sum = TimedOp(name: "add", shape: "", bytes: 0) { _ in backend.add(pair[0], adding: pair[1]) }
        let timer = OpTimer(backend: backend)
        let best = max(2 / (try timer.milliseconds(of: copy)), 3 / (try timer.milliseconds(of: sum)))
        return best * Double(size) / 1e6
    }
}
