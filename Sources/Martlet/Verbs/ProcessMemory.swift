internal import MartletCore

#if canImport(Glibc)
private import Glibc
#elseif canImport(Darwin)
private import Darwin
#endif

/// Memory of this process and of the machine, as the kernel tells it.
public enum ProcessMemory {
    /// Bytes this process has resident now (VmRSS).
    public static var residentByteCount: Int { kibibytes("/proc/self/status", "VmRSS:") ?? 0 }
    /// The most it ever had (VmHWM).
    public static var peakByteCount: Int { kibibytes("/proc/self/status", "VmHWM:") ?? 0 }
    /// Memory of the machine.
    public static var machineByteCount: Int { kibibytes("/proc/meminfo", "MemTotal:") ?? 0 }

    /// Bytes that this process may still take: what the kernel calls available, and the container's limit if there is one.
    public static var availableByteCount: Int {
        let machine = kibibytes("/proc/meminfo", "MemAvailable:") ?? 0
        guard let limit = number("/sys/fs/cgroup/memory.max", ""),
            let used = number("/sys/fs/cgroup/memory.current", "")
        else { return machine }
        return min(machine, max(0, limit - used))
    }

    /// Processors that are online.
    public static var processorCount: Int { max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))) }

    private static func kibibytes(_ path: String, _ label: String) -> Int? { number(path, label).map { $0 * 1024 } }

    /// The decimal number that follows `label` in a small file of the kernel's.
    private static func number(_ path: String, _ label: String) -> Int? {
        let line = lines(of: path).first { $0.hasPrefix(label) }
        return line.flatMap { Int($0.dropFirst(label.count).drop { $0 == " " || $0 == "\t" }.prefix { $0.isNumber }) }
    }
}

/// The lines of a small file of the kernel's, which has no size that could be mapped.
func lines(of path: String) -> [Substring] {
    guard let file = fopen(path, "r") else { return [] }
    defer { fclose(file) }
    var text: [UInt8] = [], buffer = [UInt8](repeating: 0, count: 16384)
    while true {
        let count = fread(&buffer, 1, buffer.count, file)
        guard count > 0 else { break }
        text += buffer.prefix(count)
    }
    return String(decoding: text, as: UTF8.self).split(separator: "\n")
}

/// Measures time with the clock that never goes back.
struct Stopwatch {
    private let start = ContinuousClock.now
    var seconds: Double {
        let (whole, attoseconds) = start.duration(to: .now).components
        return Double(whole) + Double(attoseconds) * 1e-18
    }
}
