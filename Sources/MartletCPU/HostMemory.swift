package import MartletCore

#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

extension CPUBackend {
    /// The host's memory is the memory.
    package func makeHostArena(byteCount: Int) throws(MartletError) -> Arena { try makeArena(byteCount: byteCount) }

    package func transfer(_ x_N: Tensor, to y_N: Tensor) -> Transfer {
        guard copiesLate else {
            set(y_N, to: x_N)
            return Transfer()
        }
        lateCopies.append((x_N, y_N))
        return Transfer(number: lateCopies.count - 1)
    }

    package func wait(for transfer: Transfer) {
        guard copiesLate else { return }
        let (x_N, y_N) = lateCopies[transfer.number]
        set(y_N, to: x_N)
    }

    package func makeArena(byteCount: Int) throws(MartletError) -> Arena {
        let size = roundUp(max(byteCount, 1), to: 4096)
        let free = availableMemory()
        if let free, size > free {
            throw MartletError(
                "not enough memory for this run",
                because: "it needs \(formatBytes(size)), \(formatBytes(free)) are free",
                fix: "close other programs, or lower the tokens a step, the sequence length or lora_r")
        }
        let protection = PROT_READ | PROT_WRITE
        guard let base = mmap(nil, size, protection, MAP_PRIVATE | MAP_ANON, -1, 0), base != MAP_FAILED else {
            throw MartletError(
                "the system refused \(formatBytes(size)) of memory", because: String(cString: strerror(errno)),
                fix: "raise the memory limit (ulimit -v, container limit), or lower the tokens a step")
        }
        #if canImport(Glibc)
        madvise(base, size, 14)  // MADV_HUGEPAGE: fewer TLB misses, and faster to touch
        #endif
        workers.run(over: size, by: 1 << 24) { range, _ in
            for offset in stride(from: range.lowerBound, to: range.upperBound, by: 4096) {
                base.storeBytes(of: 0, toByteOffset: offset, as: UInt8.self)
            }
        }
        let address = UInt(bitPattern: base)
        return Arena(base: address, capacity: size) { munmap(UnsafeMutableRawPointer(bitPattern: address), size) }
    }
}

/// Bytes that this process may still take: what the kernel calls available, and the container's limit if there is one.
private func availableMemory() -> Int? {
    let machine = firstNumber(in: "/proc/meminfo", after: "MemAvailable:").map { $0 * 1024 }
    let limit = firstNumber(in: "/sys/fs/cgroup/memory.max", after: "")
    let used = firstNumber(in: "/sys/fs/cgroup/memory.current", after: "")
    guard let limit, let used else { return machine }
    // File pages count as used, but the kernel gives them back when asked.
    let cached = firstNumber(in: "/sys/fs/cgroup/memory.stat", after: "inactive_file ") ?? 0
    return min(machine ?? .max, max(0, limit - used + cached))
}

/// The decimal number that follows `label` in a small file of the kernel's.
private func firstNumber(in path: String, after label: String) -> Int? {
    guard let file = fopen(path, "r") else { return nil }
    defer { fclose(file) }
    var text = [UInt8](repeating: 0, count: 4096)
    let count = fread(&text, 1, text.count, file)
    let string = String(decoding: text.prefix(count), as: UTF8.self)
    for line in string.split(separator: "\n") where line.hasPrefix(label) {
        return Int(line.dropFirst(label.count).drop { $0 == " " }.prefix { $0.isNumber })
    }
    return nil
}
