#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// OpenBLAS, looked up at run time and told to use one thread: the parallelism is ours (`Workers`), because a product
/// cut by a library's own threads may give other bytes with another number of them.
struct OpenBLAS: Sendable {
    typealias SGEMM =
        @convention(c) (
            Int32, Int32, Int32, Int32, Int32, Int32, Float, UnsafePointer<Float>?, Int32, UnsafePointer<Float>?, Int32,
            Float, UnsafeMutablePointer<Float>?, Int32
        ) -> Void

    let sgemm: SGEMM
    /// "OpenBLAS 0.3.21"
    let name: String

    /// Nil if this machine has none. A reference BLAS is slower than our own product and is not used.
    static let shared = load()

    private static func load() -> OpenBLAS? {
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
            return OpenBLAS(sgemm: unsafeBitCast(sgemm, to: SGEMM.self), name: name)
        }
        return nil
    }
}
