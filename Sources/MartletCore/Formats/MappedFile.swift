#if canImport(Glibc)
private import Glibc
#elseif canImport(Darwin)
private import Darwin
#endif

/// A file mapped read-only into memory: pages are read when touched, so opening a large file costs nothing.
///
/// The file must not be shortened while it is mapped; Martlet only replaces files by renaming, which is safe.
package final class MappedFile: Sendable {
    package let path: String
    package let byteCount: Int
    private let address: UInt

    package init(_ path: String) throws(MartletError) {
        self.path = path
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { throw FileSystem.failure("cannot open the file", path) }
        defer { close(descriptor) }
        var info = stat()
        guard fstat(descriptor, &info) == 0 else { throw FileSystem.failure("cannot read the file", path) }
        guard info.st_mode & S_IFMT != S_IFDIR else {
            throw FileSystem.failure("cannot read the file", path, code: EISDIR)
        }
        guard info.st_mode & S_IFMT == S_IFREG else {
            throw MartletError(
                "cannot read the file", in: path, because: "it is a pipe or a device, not an ordinary file",
                fix: "save its contents to an ordinary file first")
        }
        byteCount = Int(info.st_size)
        guard byteCount > 0 else {
            address = 0
            return
        }
        let base = mmap(nil, byteCount, PROT_READ, MAP_PRIVATE, descriptor, 0)
        guard let base, UInt(bitPattern: base) != .max else { throw FileSystem.failure("cannot map the file", path) }
        address = UInt(bitPattern: base)
    }

    deinit {
        if byteCount > 0 { munmap(UnsafeMutableRawPointer(bitPattern: address), byteCount) }
    }

    /// The contents, mapped while `body` runs.
    package func withBytes<T, E>(_ body: (UnsafeRawBufferPointer) throws(E) -> T) throws(E) -> T {
        defer { withExtendedLifetime(self) {} }
        return try body(UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: address), count: byteCount))
    }

    /// Gives the pages under `range` back to the system; touching them again reads them again (from the file cache, most
    /// often). So a checkpoint that is read through takes no lasting memory.
    package func releasePages(of range: Range<Int>) {
        let page = UInt(sysconf(Int32(_SC_PAGESIZE)))
        let start = (address + UInt(range.lowerBound)) / page * page
        let end = (address + UInt(range.upperBound) + page - 1) / page * page
        madvise(UnsafeMutableRawPointer(bitPattern: start), Int(end - start), Int32(MADV_DONTNEED))
    }
}
