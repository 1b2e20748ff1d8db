internal import MartletCore

#if canImport(Glibc)
private import Glibc
#elseif canImport(Darwin)
private import Darwin
#endif

/// What the machine has to give.
enum Machine {
    /// Bytes that a run may plan for: nine tenths of what is free, within the limit of the container if there is one.
    static var plannableMemory: Int {
        let limits = [available, containerRoom].compactMap { $0 }
        return (limits.min() ?? physical) / 10 * 9
    }

    /// Free memory with what the file cache would give back (Linux).
    private static var available: Int? {
        for line in text(of: "/proc/meminfo").split(separator: "\n") where line.hasPrefix("MemAvailable:") {
            return line.split(separator: " ").dropFirst().first.flatMap { Int($0) }.map { $0 * 1024 }
        }
        return nil
    }

    /// What the control group leaves (Linux, version 2).
    private static var containerRoom: Int? {
        guard let limit = Int(text(of: "/sys/fs/cgroup/memory.max").filter { $0 != "\n" }) else { return nil }
        let used = Int(text(of: "/sys/fs/cgroup/memory.current").filter { $0 != "\n" }) ?? 0
        return max(0, limit - used)
    }

    private static var physical: Int { sysconf(Int32(_SC_PHYS_PAGES)) * sysconf(Int32(_SC_PAGESIZE)) }

    /// The start of a file of the kernel's; these cannot be mapped and tell no size.
    private static func text(of path: String) -> String {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return "" }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 1 << 14)
        let count = bytes.withUnsafeMutableBytes { read(descriptor, $0.baseAddress, $0.count) }
        return String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self)
    }
}
