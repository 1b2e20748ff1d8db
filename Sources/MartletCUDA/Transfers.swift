internal import Dispatch
package import MartletCore

/// Pinned host memory that copies go through: two halves in turns, so that filling one hides behind copying the other. What
/// they go to or come from may lie in host memory as well (`makeHostArena`).
final class Staging {
    private let device: Device
    private let base: UnsafeMutableRawPointer
    private var busy: [Driver.Pointer] = [nil, nil]
    private var next = 0
    static let halfByteCount = 32 << 20

    init(_ device: Device) throws(MartletError) {
        self.device = device
        var memory: UnsafeMutableRawPointer?
        let result = device.driver.hostAllocate(&memory, 2 * Staging.halfByteCount, 0)
        guard result == 0, let memory else {
            throw MartletError(
                "the driver gives no pinned host memory", because: device.driver.text(of: result),
                fix: "raise the limit on locked memory (ulimit -l), or free host memory")
        }
        base = memory
        for i in 0..<2 {
            let disableTiming: UInt32 = 2
            device.check(device.driver.eventCreate(&busy[i], disableTiming), "an event")
        }
    }

    deinit { _ = device.driver.hostFree(base) }

    /// A half whose last copy is done.
    private func take() -> (index: Int, memory: UnsafeMutableRawPointer) {
        let index = next
        next = 1 - next
        device.check(device.driver.eventSynchronize(busy[index]), "a copy to the GPU")
        return (index, base + index * Staging.halfByteCount)
    }

    /// Fills the device memory at `address`, `byteCount` bytes, a piece at a time by `fill(range of bytes, host memory)`,
    /// which is called by several threads where there is much to do: one alone is slower than the way to the GPU.
    func send(_ byteCount: Int, to address: UInt, _ fill: (Range<Int>, UnsafeMutableRawPointer) -> Void) {
        for start in stride(from: 0, to: byteCount, by: Staging.halfByteCount) {
            guard !device.isIdle else { return }
            let range = start..<min(start + Staging.halfByteCount, byteCount)
            let half = take()
            inParallel(range) { fill($0, half.memory + ($0.lowerBound - range.lowerBound)) }
            device.check(
                device.driver.copy(
                    address + UInt(start), UInt(bitPattern: half.memory), range.count, device.stream),
                "a copy of \(range.count) bytes to the GPU")
            device.check(device.driver.eventRecord(busy[half.index], device.stream), "an event")
        }
    }

    func send(_ bytes: UnsafeRawBufferPointer, to address: UInt) {
        send(bytes.count, to: address) { range, memory in
            UnsafeMutableRawBufferPointer(start: memory, count: range.count).copyMemory(
                from: UnsafeRawBufferPointer(rebasing: bytes[range]))
        }
    }

    /// Copies device memory to the host, and waits for it.
    func receive(_ byteCount: Int, from address: UInt, into destination: UnsafeMutableRawPointer) {
        for start in stride(from: 0, to: byteCount, by: Staging.halfByteCount) {
            guard !device.isIdle else { return }
            let count = min(Staging.halfByteCount, byteCount - start), half = take()
            device.check(
                device.driver.copy(UInt(bitPattern: half.memory), address + UInt(start), count, device.stream),
                "a copy of \(count) bytes from the GPU")
            device.synchronize()
            (destination + start).copyMemory(from: half.memory, byteCount: count)
        }
    }
}

/// Calls `body` with the parts of a range of bytes, each on a processor of its own.
private func inParallel(_ range: Range<Int>, _ body: (Range<Int>) -> Void) {
    let part = 256 << 10
    guard range.count >= 2 * part else { return body(range) }
    // The parts have nothing in common, which the compiler cannot know.
    nonisolated(unsafe) let body = body
    DispatchQueue.concurrentPerform(iterations: ceilDiv(range.count, part)) { i in
        let start = range.lowerBound + i * part
        body(start..<min(start + part, range.upperBound))
    }
}

extension CUDABackend {
    package func makeArena(byteCount: Int) throws(MartletError) -> Arena {
        let size = roundUp(max(byteCount, 1), to: 1 << 21), driver = device.driver
        var address: UInt = 0
        let result = driver.memoryAllocate(&address, size)
        guard result == 0 else {
            var free = 0, total = 0
            _ = driver.memoryInfo(&free, &total)
            throw MartletError(
                "not enough GPU memory for this run", in: device.name,
                because: "it needs \(formatBytes(size)), \(formatBytes(free)) of \(formatBytes(total)) are free "
                    + "(\(driver.text(of: result)))",
                fix: "end other programs on the GPU (`nvidia-smi`), or lower the tokens a step, the length or lora_r")
        }
        return Arena(base: address, capacity: size) { _ = driver.memoryFree(address) }
    }

    package func upload(_ source: UnsafeRawBufferPointer, as dtype: DType, into destination: Tensor) {
        let count = destination.count, size = destination.dtype.byteCount
        precondition(source.count == count * dtype.byteCount, "upload: \(source.count) bytes for \(destination.shape)")
        guard count > 0, let from = source.baseAddress else { return }
        staging.send(count * size, to: destination.address) { range, memory in
            guard dtype != destination.dtype else {
                return memory.copyMemory(from: from + range.lowerBound, byteCount: range.count)
            }
            let elements = range.lowerBound / size..<range.upperBound / size
            let bytes = UnsafeRawBufferPointer(
                start: from + elements.lowerBound * dtype.byteCount, count: elements.count * dtype.byteCount)
            convertOnHost(bytes, dtype, memory, destination.dtype, elements.count)
        }
    }

    package func download(_ source: Tensor, into destination: UnsafeMutableRawBufferPointer) {
        precondition(destination.count == source.byteCount, "download: \(destination.count) bytes of \(source.shape)")
        guard let to = destination.baseAddress else { return }
        staging.receive(source.byteCount, from: source.address, into: to)
    }

    package func zero(_ x_N: Tensor) {
        launchBytes("zero_bytes", x_N.byteCount, [.tensor(x_N)])
    }

    package func set(_ y_N: Tensor, to x_N: Tensor) {
        precondition(x_N.dtype == y_N.dtype && x_N.count == y_N.count)
        launchBytes("copy_bytes", x_N.byteCount, [.tensor(x_N), .tensor(y_N)])
    }

    private func launchBytes(_ entry: String, _ byteCount: Int, _ tensors: [KernelArgument]) {
        guard byteCount > 0 else { return }
        device.launch(
            device.kernel("copy.cu", entry), Grid(ceilDiv(byteCount, 16384)), block: 256, tensors + [.long(byteCount)])
    }
}

/// Converts between the floating-point types by way of float32.
private func convertOnHost(
    _ source: UnsafeRawBufferPointer, _ from: DType, _ destination: UnsafeMutableRawPointer, _ to: DType, _ count: Int
) {
    let piece = 1 << 14
    withUnsafeTemporaryAllocation(of: Float.self, capacity: min(piece, count)) { floats in
        for start in stride(from: 0, to: count, by: piece) {
            let n = min(piece, count - start)
            let part = UnsafeMutableBufferPointer(rebasing: floats[..<n])
            let bytes = source[start * from.byteCount..<(start + n) * from.byteCount]
            convertToFloat(UnsafeRawBufferPointer(rebasing: bytes), as: from, into: part)
            let result = UnsafeMutableRawBufferPointer(
                start: destination + start * to.byteCount, count: n * to.byteCount)
            convertFromFloat(UnsafeBufferPointer(part), as: to, into: result)
        }
    }
}
