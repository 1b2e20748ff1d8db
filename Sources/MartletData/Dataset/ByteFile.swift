import MartletCore

#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// A file that is read at any place by any thread. It is read with `pread` rather than mapped, so that a file that
/// shrinks during the run is an error and not a crash.
final class ByteFile: Sendable {
    /// The name as messages show it.
    let name: String
    /// Bytes in the file when it was opened.
    let size: Int
    private let descriptor: Int32

    /// Opens a regular file.
    init(opening path: String) throws(MartletError) {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw MartletError(
                "cannot open the file", in: path, because: systemErrorText(), fix: "check the path and its permissions")
        }
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            close(descriptor)
            throw MartletError(
                "cannot read this as a data file", in: path, because: "it is not a regular file",
                fix: "give a file, or a folder of files")
        }
        self.descriptor = descriptor
        name = path
        size = Int(status.st_size)
    }

    /// Takes over an open descriptor of `size` bytes.
    fileprivate init(descriptor: Int32, name: String, size: Int) {
        self.descriptor = descriptor
        self.name = name
        self.size = size
    }

    deinit { close(descriptor) }

    /// The bytes `offset ..< offset + count`.
    func bytes(at offset: Int, count: Int) throws(MartletError) -> [UInt8] {
        var failure: MartletError?
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            do throws(MartletError) {
                try read(into: UnsafeMutableRawBufferPointer(buffer), at: offset)
                initialized = count
            } catch { failure = error }
        }
        if let failure { throw failure }
        return bytes
    }

    /// Fills `buffer` from `offset` on.
    func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws(MartletError) {
        var done = 0
        while done < buffer.count {
            let count = pread(
                descriptor, buffer.baseAddress.map { $0 + done }, buffer.count - done, off_t(offset + done))
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else {
                throw MartletError(
                    "cannot read the file", in: name,
                    because: count == 0 ? "it became shorter while it was being read" : systemErrorText(),
                    fix: "leave the data in place during the run, then start again")
            }
            done += count
        }
    }

    /// Calls `body` with the whole file, a chunk of at most 1 MiB at a time.
    func forEachChunk(
        _ body: (UnsafeRawBufferPointer) throws(MartletError) -> Void
    ) throws(MartletError) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 16)
        defer { buffer.deallocate() }
        var offset = 0
        while offset < size {
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<min(buffer.count, size - offset)])
            try read(into: part, at: offset)
            try body(UnsafeRawBufferPointer(part))
            offset += part.count
        }
    }
}

/// Writes a temporary file that no name points to, so that it disappears with the process.
final class SpoolWriter {
    private let descriptor: Int32
    private let name: String
    private let folder: String
    private var size = 0
    private var buffer: [UInt8] = []

    /// `name` is what messages call the file.
    init(name: String) throws(MartletError) {
        self.name = name
        folder = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
        var path = Array("\(folder)/martlet-XXXXXX".utf8CString)
        descriptor = mkstemp(&path)
        guard descriptor >= 0 else { throw SpoolWriter.failure(folder) }
        unlink(path)
    }

    private static func failure(_ folder: String) -> MartletError {
        MartletError(
            "cannot write a temporary file", in: folder, because: systemErrorText(),
            fix: "free some space there, or set TMPDIR to a folder with more")
    }

    func append(_ bytes: UnsafeRawBufferPointer) throws(MartletError) {
        if buffer.count + bytes.count >= 1 << 20 { try flush() }
        if bytes.count < 1 << 20 { buffer.append(contentsOf: bytes) } else { try write(bytes) }
    }

    private func flush() throws(MartletError) {
        var outcome: Result<Void, MartletError> = .success(())
        buffer.withUnsafeBytes { bytes in outcome = Result { () throws(MartletError) in try write(bytes) } }
        try outcome.get()
        buffer.removeAll(keepingCapacity: true)
    }

    private func write(_ bytes: UnsafeRawBufferPointer) throws(MartletError) {
        var done = 0
        while done < bytes.count {
            let count = systemWrite(descriptor, bytes.baseAddress.map { $0 + done }, bytes.count - done)
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { throw SpoolWriter.failure(folder) }
            done += count
        }
        size += bytes.count
    }

    /// The file written so far, for reading. The writer is not used after this.
    func finish() throws(MartletError) -> ByteFile {
        try flush()
        let copy = dup(descriptor)
        guard copy >= 0 else { throw SpoolWriter.failure(folder) }
        return ByteFile(descriptor: copy, name: name, size: size)
    }

    deinit { if descriptor >= 0 { close(descriptor) } }
}

private func systemWrite(_ descriptor: Int32, _ bytes: UnsafeRawPointer?, _ count: Int) -> Int {
    write(descriptor, bytes, count)
}

/// What the last failed system call says.
func systemErrorText() -> String { String(cString: strerror(errno)) }
