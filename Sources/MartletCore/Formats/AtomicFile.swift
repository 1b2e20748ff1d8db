#if canImport(Glibc)
private import Glibc
#elseif canImport(Darwin)
private import Darwin
#endif

/// A file that appears whole or not at all: written under a temporary name in its own folder, flushed to the disk, then
/// renamed. Dropped without `commit()`, or after an error, it leaves nothing behind and what stood there before stays.
package final class AtomicFile {
    package let path: String
    private let temporaryPath: String
    private var descriptor: Int32

    package init(_ path: String) throws(MartletError) {
        self.path = path
        temporaryPath = temporaryName(beside: path)
        descriptor = open(temporaryPath, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
        guard descriptor >= 0 else { throw FileSystem.failure("cannot write the file", path) }
    }

    deinit { abandon() }

    /// Appends bytes.
    package func write(_ bytes: UnsafeRawBufferPointer) throws(MartletError) {
        do throws(MartletError) {
            try writeAll(bytes, to: descriptor, path)
        } catch {
            abandon()
            throw error
        }
    }

    package func write(_ bytes: [UInt8]) throws(MartletError) {
        try bytes.withBytes { (buffer) throws(MartletError) in try write(buffer) }
    }

    /// Makes the file appear at its path.
    package func commit() throws(MartletError) {
        guard fsync(descriptor) == 0, rename(temporaryPath, path) == 0 else {
            let error = FileSystem.failure("cannot write the file", path)
            abandon()
            throw error
        }
        close(descriptor)
        descriptor = -1
        try flushFolder(FileSystem.folder(of: path))
    }

    private func abandon() {
        guard descriptor >= 0 else { return }
        close(descriptor)
        unlink(temporaryPath)
        descriptor = -1
    }

    /// Writes a whole file in one go.
    package static func write(_ bytes: [UInt8], to path: String) throws(MartletError) {
        let file = try AtomicFile(path)
        try file.write(bytes)
        try file.commit()
    }

    package static func write(_ text: String, to path: String) throws(MartletError) {
        try write(Array(text.utf8), to: path)
    }

    /// Copies a file.
    package static func copy(_ source: String, to path: String) throws(MartletError) {
        let mapped = try MappedFile(source), file = try AtomicFile(path)
        try mapped.withBytes { (bytes) throws(MartletError) in try file.write(bytes) }
        try file.commit()
    }
}

/// A folder that appears whole or not at all: filled under a temporary name beside its own, then renamed.
package final class AtomicFolder {
    package let path: String
    /// Where to write until `commit()`.
    package let temporaryPath: String
    private let replaces: Bool
    private var isOpen = true

    /// `replaces` exchanges a folder that stands there already; otherwise only an empty one is accepted.
    package init(_ path: String, replaces: Bool = false) throws(MartletError) {
        self.path = path
        self.replaces = replaces
        temporaryPath = temporaryName(beside: path)
        if !replaces, let kind = FileSystem.kind(of: path) {
            guard kind == .folder, try FileSystem.list(path).isEmpty else { throw occupied(path, kind) }
        }
        try FileSystem.makeFolder(FileSystem.folder(of: path))
        guard mkdir(temporaryPath, 0o777) == 0 else { throw FileSystem.failure("cannot write the folder", path) }
    }

    deinit { if isOpen { try? FileSystem.remove(temporaryPath) } }

    /// The path of a file in the folder while it is being filled.
    package func file(_ name: String) -> String { FileSystem.join(temporaryPath, name) }

    /// Makes the folder appear at its path. The files in it must have been flushed; `AtomicFile` does that.
    package func commit() throws(MartletError) {
        try flushFolder(temporaryPath)
        let isOccupied = FileSystem.kind(of: path) == .folder && !((try? FileSystem.list(path).isEmpty) ?? true)
        if isOccupied {
            guard replaces else { throw occupied(path, .folder) }
            try exchange()
        } else {
            guard rename(temporaryPath, path) == 0 else { throw FileSystem.failure("cannot write the folder", path) }
        }
        isOpen = false
        try flushFolder(FileSystem.folder(of: path))
    }

    /// Moves the old folder aside, the new one in, and removes the old one; a failure moves the old one back.
    private func exchange() throws(MartletError) {
        let old = temporaryName(beside: path)
        guard rename(path, old) == 0 else { throw FileSystem.failure("cannot replace the folder", path) }
        guard rename(temporaryPath, path) == 0 else {
            let error = FileSystem.failure("cannot replace the folder", path)
            rename(old, path)
            throw error
        }
        try FileSystem.remove(old)
    }
}

private func occupied(_ path: String, _ kind: FileSystem.Kind) -> MartletError {
    MartletError(
        "the output folder is taken", in: path,
        because: kind == .folder ? "a folder with files in it stands there" : "a file stands there",
        fix: "choose another path, or remove it yourself")
}

/// A name in the same folder that nothing has: hidden, with the process and 64 random bits.
private func temporaryName(beside path: String) -> String {
    let random = String(UInt64.random(in: 0 ... .max), radix: 36)
    return FileSystem.join(FileSystem.folder(of: path), ".\(FileSystem.name(of: path)).\(getpid()).\(random).partial")
}

/// Writes everything, in pieces that every file system takes.
package func writeAll(_ bytes: UnsafeRawBufferPointer, to descriptor: Int32, _ path: String) throws(MartletError) {
    var offset = 0
    while offset < bytes.count {
        let piece = UnsafeRawBufferPointer(rebasing: bytes[offset..<min(bytes.count, offset + 1 << 28)])
        let written = write(descriptor, piece.baseAddress, piece.count)
        if written < 0, errno == EINTR { continue }
        guard written > 0 else { throw FileSystem.failure("cannot write the file", path) }
        offset += written
    }
}

/// Makes renames in a folder last; file systems that cannot are not an error.
private func flushFolder(_ folder: String) throws(MartletError) {
    let descriptor = open(folder, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw FileSystem.failure("cannot open the folder", folder) }
    defer { close(descriptor) }
    guard fsync(descriptor) == 0 || errno == EINVAL || errno == ENOTSUP else {
        throw FileSystem.failure("cannot flush the folder to the disk", folder)
    }
}

extension Array {
    /// `withUnsafeBytes` for bodies that throw a `MartletError`.
    package func withBytes<T>(_ body: (UnsafeRawBufferPointer) throws(MartletError) -> T) throws(MartletError) -> T {
        try withUnsafeBufferPointer { (buffer) throws(MartletError) in try body(UnsafeRawBufferPointer(buffer)) }
    }
}
