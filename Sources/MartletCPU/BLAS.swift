#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// A row-major matrix as an operand: its memory, its leading dimension, and whether it is read transposed.
struct Operand {
    var start: Floats
    var stride: Int
    var isTransposed = false

    init(_ start: Floats, _ stride: Int) {
        self.start = start
        self.stride = stride
    }

    var transposed: Operand {
        var copy = self
        copy.isTransposed.toggle()
        return copy
    }
}

/// The matrix product that everything heavy goes through, on the calling thread.
///
/// OpenBLAS is looked up at run time and told to use one thread: the parallelism is ours (`Workers`), because a
/// product cut by a library's own threads may give other bytes with another number of them.
struct MatrixProduct: Sendable {
    private typealias SGEMM =
        @convention(c) (
            Int32, Int32, Int32, Int32, Int32, Int32, Float, UnsafePointer<Float>?, Int32, UnsafePointer<Float>?, Int32,
            Float, UnsafeMutablePointer<Float>?, Int32
        ) -> Void

    private let sgemm: SGEMM?
    /// "OpenBLAS 0.3.21", or nil for our own product.
    let libraryName: String?

    /// Our own product, in Swift.
    static let own = MatrixProduct(sgemm: nil, libraryName: nil)
    /// OpenBLAS, if this machine has it. A reference BLAS is slower than our own product and is not used.
    static let library: MatrixProduct? = load()

    /// C = alpha A B, or C += alpha A B where `adds`; A is m x k and B is k x n as read, C is m x n row-major.
    func callAsFunction(
        _ m: Int, _ n: Int, _ k: Int, _ a: Operand, _ b: Operand, into c: Floats, _ stride: Int, alpha: Float = 1,
        adds: Bool = false
    ) {
        guard m > 0, n > 0 else { return }
        guard let sgemm, k > 0 else {
            return ownProduct(m, n, k, a, b, into: c, stride, alpha: alpha, adds: adds)
        }
        let rowMajor: Int32 = 101
        sgemm(
            rowMajor, a.isTransposed ? 112 : 111, b.isTransposed ? 112 : 111, Int32(m), Int32(n), Int32(k), alpha,
            a.start, Int32(a.stride), b.start, Int32(b.stride), adds ? 1 : 0, c, Int32(stride))
    }

    private static func load() -> MatrixProduct? {
        for file in ["libopenblas.so.0", "libopenblas.so", "libblas.so.3", "libopenblas.dylib"] {
            guard let handle = dlopen(file, RTLD_NOW | RTLD_LOCAL), let sgemm = dlsym(handle, "cblas_sgemm"),
                let setThreads = dlsym(handle, "openblas_set_num_threads"),
                let configuration = dlsym(handle, "openblas_get_config")
            else { continue }
            unsafeBitCast(setThreads, to: (@convention(c) (Int32) -> Void).self)(1)
            let describe = unsafeBitCast(configuration, to: (@convention(c) () -> UnsafePointer<CChar>?).self)
            // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ...": name and version are enough.
            let words = describe().map { String(cString: $0).split(separator: " ").prefix(2) } ?? []
            let name = words.isEmpty ? "OpenBLAS" : words.joined(separator: " ")
            return MatrixProduct(sgemm: unsafeBitCast(sgemm, to: SGEMM.self), libraryName: name)
        }
        return nil
    }
}
