internal import MartletCore

#if canImport(Glibc)
private import Glibc
#elseif canImport(Darwin)
private import Darwin
#endif

/// A file that grows at its end; every append is handed to the system at once, so a crash loses nothing but itself.
final class AppendFile {
    let path: String
    private let descriptor: Int32

    /// Opens or creates `path`; `truncating` empties it.
    init(_ path: String, truncating: Bool = false) throws(MartletError) {
        self.path = path
        descriptor = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (truncating ? O_TRUNC : 0), 0o644)
        guard descriptor >= 0 else { throw FileSystem.failure("cannot open the file for writing", path) }
    }

    deinit { close(descriptor) }

    func append(_ bytes: [UInt8]) throws(MartletError) {
        var start = 0
        while start < bytes.count {
            let count = bytes[start...].withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            if count < 0 {
                if errno == EINTR { continue }
                throw FileSystem.failure("cannot write to the file", path)
            }
            start += count
        }
    }
}

/// Seconds since 1970, for TensorBoard.
func wallClock() -> Double {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return Double(now.tv_sec) + Double(now.tv_nsec) * 1e-9
}
