internal import Dispatch
internal import Glibc
package import MartletCore

/// Pinned memory of the host. The driver's own way touches it page by page on one processor, a gigabyte in 0.4 seconds; so it is
/// touched by all of them first, and then pinned where it lies.
struct PinnedMemory {
    let address: UnsafeMutableRawPointer
    private let isRegistered: Bool

    private static let page = 4096

    init(_ device: Device, byteCount: Int) throws(MartletError) {
        if let memory = PinnedMemory.registered(device, byteCount) {
            (address, isRegistered) = (memory, true)
            return
        }
        var memory: UnsafeMutableRawPointer?
        let result = device.driver.hostAllocate(&memory, byteCount, 0)
        guard result == 0, let memory else {
            throw MartletError(
                "not enough host memory for this run", in: device.name,
                because: "\(formatBytes(byteCount)) of it must be pinned (\(device.driver.text(of: result)))",
                fix: "free host memory, raise the limit on locked memory (ulimit -l), or raise 'memory_limit'")
        }
        (address, isRegistered) = (memory, false)
    }

    /// nil where there is none, the driver does not take it, or would have another address for it.
    private static func registered(_ device: Device, _ byteCount: Int) -> UnsafeMutableRawPointer? {
        var allocated: UnsafeMutableRawPointer?
        guard device.pinsInPlace, let register = device.driver.hostRegister,
            posix_memalign(&allocated, 1 << 21, byteCount) == 0, let memory = allocated
        else { return nil }
        // Every thread writes where no other does.
        nonisolated(unsafe) let start = memory
        let part = 1 << 25
        DispatchQueue.concurrentPerform(iterations: ceilDiv(byteCount, part)) { i in
            for offset in stride(from: i * part, to: min((i + 1) * part, byteCount), by: page) {
                start.storeBytes(of: 0, toByteOffset: offset, as: UInt8.self)
            }
        }
        // Kernels read and write it where it lies, too.
        let portableAndMapped: UInt32 = 3
        guard register(memory, byteCount, portableAndMapped) == 0 else {
            Glibc.free(memory)
            return nil
        }
        return memory
    }

    func free(_ driver: Driver) {
        guard isRegistered else { return _ = driver.hostFree(address) }
        _ = driver.hostUnregister?(address)
        Glibc.free(address)
    }
}

extension CUDABackend {
    package func makeHostArena(byteCount: Int) throws(MartletError) -> Arena {
        let size = roundUp(max(byteCount, 1), to: 1 << 21), driver = device.driver
        let memory = try PinnedMemory(device, byteCount: size)
        let first = UInt(bitPattern: memory.address), range = first..<first + UInt(size)
        sideCopies.addHost(range)
        return Arena(base: first, capacity: size) { [sideCopies] in
            sideCopies.removeHost(range)
            memory.free(driver)
        }
    }
}
