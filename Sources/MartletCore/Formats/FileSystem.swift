#if canImport(Glibc)
private import Glibc
#elseif canImport(Darwin)
private import Darwin
#endif

/// The few questions and commands to the file system that Martlet needs, each failing with an error a person can act on.
package enum FileSystem {
    package enum Kind: Sendable { case file, folder, other }

    /// What stands at `path`, links followed; nil if nothing does.
    package static func kind(of path: String) -> Kind? {
        var info = stat()
        guard stat(path, &info) == 0 else { return nil }
        return switch info.st_mode & S_IFMT {
        case S_IFREG: .file
        case S_IFDIR: .folder
        default: .other
        }
    }

    package static func exists(_ path: String) -> Bool { kind(of: path) != nil }

    /// The names in a folder, sorted, without "." and "..".
    package static func list(_ folder: String) throws(MartletError) -> [String] {
        guard let stream = opendir(folder) else { throw failure("cannot list the folder", folder) }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    /// The whole file as bytes.
    package static func read(_ path: String) throws(MartletError) -> [UInt8] {
        try MappedFile(path).withBytes(Array.init)
    }

    /// The JSON document in a file; errors name the file.
    package static func readJSON(_ path: String) throws(MartletError) -> JSON {
        let file = try MappedFile(path)
        do throws(MartletError) {
            return try file.withBytes { (bytes) throws(MartletError) in try JSON(parsing: bytes) }
        } catch {
            throw error.at(path)
        }
    }

    /// Makes the folder and those above it; one that is there already is fine.
    package static func makeFolder(_ path: String) throws(MartletError) {
        if path.isEmpty || kind(of: path) == .folder { return }
        let parent = folder(of: path)
        if parent != path, parent != "." { try makeFolder(parent) }
        guard mkdir(path, 0o777) == 0 || (errno == EEXIST && kind(of: path) == .folder) else {
            throw failure("cannot make the folder", path)
        }
    }

    /// Removes a file, or a folder with everything in it; links are removed, not followed. Nothing there is fine.
    package static func remove(_ path: String) throws(MartletError) {
        var info = stat()
        guard lstat(path, &info) == 0 else { return }
        guard info.st_mode & S_IFMT == S_IFDIR else {
            guard unlink(path) == 0 || errno == ENOENT else { throw failure("cannot remove the file", path) }
            return
        }
        for name in try list(path) { try remove(join(path, name)) }
        guard rmdir(path) == 0 || errno == ENOENT else { throw failure("cannot remove the folder", path) }
    }

    package static func join(_ folder: String, _ name: String) -> String {
        folder.isEmpty ? name : folder.hasSuffix("/") ? folder + name : folder + "/" + name
    }

    /// The folder that holds `path`, "." for a bare name.
    package static func folder(of path: String) -> String {
        let trimmed = trimmingSlashes(path)
        guard let slash = trimmed.lastIndex(of: "/") else { return "." }
        return slash == trimmed.startIndex ? "/" : String(trimmed[..<slash])
    }

    /// The last component of `path`.
    package static func name(of path: String) -> String {
        let trimmed = trimmingSlashes(path)
        guard let slash = trimmed.lastIndex(of: "/") else { return trimmed }
        return String(trimmed[trimmed.index(after: slash)...])
    }

    private static func trimmingSlashes(_ path: String) -> String {
        var path = path
        while path.count > 1, path.hasSuffix("/") { path.removeLast() }
        return path
    }

    /// The error of a system call that has just failed, with what to do about it.
    package static func failure(_ problem: String, _ path: String, code: Int32? = nil) -> MartletError {
        let code = code ?? errno
        return MartletError(problem, in: path, because: String(cString: strerror(code)), fix: remedy(for: code))
    }

    private static func remedy(for code: Int32) -> String {
        switch code {
        case ENOENT: "check the path for typos; a relative path starts at the folder the command runs in"
        case EACCES, EPERM: "check the permissions with `ls -ld`, or choose a path you may use"
        case ENOSPC, EDQUOT: "free space there (`df -h` shows it), or choose a path on another disk"
        case EFBIG: "raise the file size limit (`ulimit -f unlimited`), or choose a smaller shard size"
        case EROFS: "that disk is read-only; choose another path"
        case ENOTDIR: "a part of that path is a file, not a folder; check the path"
        case EISDIR: "that is a folder; give the path of a file"
        case EEXIST, ENOTEMPTY: "choose another path, or remove what stands there"
        case EMFILE, ENFILE: "too many files are open; raise the limit (`ulimit -n 65536`)"
        case ENAMETOOLONG: "choose a shorter path"
        case ELOOP: "the path runs in a circle of links; check it with `ls -l`"
        default: "check the disk and the path, then try again"
        }
    }
}
