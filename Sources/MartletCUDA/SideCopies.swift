package import MartletCore

/// Copies beside the device's stream, between its memory and the host's: a stream for each direction, since the bus goes
/// both ways at once.
final class SideCopies {
    /// Copies of one direction, one after the other.
    private struct Lane {
        var stream: Driver.Pointer = nil
        /// What a copy waits for, and its end. They are used again in turns; to wait for one that has been used again is to
        /// wait for a later copy of the lane.
        var events: [(start: Driver.Pointer, end: Driver.Pointer)] = []
        var count = 0
    }

    private let device: Device
    private var toHost = Lane(), toDevice = Lane()
    private static let eventCount = 32
    /// Pinned memory that arenas gave out.
    private var hostRanges: [Range<UInt>] = []

    init(_ device: Device) throws(MartletError) {
        self.device = device
        (toHost, toDevice) = (makeLane(), makeLane())
        if let failure = device.takeFailure() { throw failure }
    }

    private func makeLane() -> Lane {
        var lane = Lane()
        let nonBlocking: UInt32 = 1, disableTiming: UInt32 = 2
        device.check(device.driver.streamCreate(&lane.stream, nonBlocking), "a stream")
        lane.events = (0..<SideCopies.eventCount).map { _ in
            var start: Driver.Pointer = nil, end: Driver.Pointer = nil
            device.check(device.driver.eventCreate(&start, disableTiming), "an event")
            device.check(device.driver.eventCreate(&end, disableTiming), "an event")
            return (start, end)
        }
        return lane
    }

    func addHost(_ range: Range<UInt>) { hostRanges.append(range) }
    func removeHost(_ range: Range<UInt>) { hostRanges.removeAll { $0 == range } }

    func transfer(_ x_N: Tensor, to y_N: Tensor) -> Transfer {
        precondition(x_N.dtype == y_N.dtype && x_N.count == y_N.count)
        let leaves = hostRanges.contains { $0.contains(y_N.address) }
        return leaves ? queue(x_N, y_N, in: &toHost, 0) : queue(x_N, y_N, in: &toDevice, 1)
    }

    /// A transfer's number is even for copies to the host.
    private func queue(_ x_N: Tensor, _ y_N: Tensor, in lane: inout Lane, _ parity: Int) -> Transfer {
        let transfer = Transfer(number: 2 * lane.count + parity), driver = device.driver
        let event = lane.events[lane.count % SideCopies.eventCount]
        lane.count += 1
        guard device.failure == nil else { return transfer }
        device.check(driver.eventRecord(event.start, device.stream), "an event")
        device.check(driver.streamWaitEvent(lane.stream, event.start, 0), "an event")
        if x_N.count > 0 {
            device.check(
                driver.copy(y_N.address, x_N.address, x_N.byteCount, lane.stream),
                "a copy of \(x_N.byteCount) bytes")
        }
        device.check(driver.eventRecord(event.end, lane.stream), "an event")
        return transfer
    }

    func wait(for transfer: Transfer) {
        guard device.failure == nil else { return }
        let lane = transfer.number % 2 == 0 ? toHost : toDevice
        let event = lane.events[transfer.number / 2 % SideCopies.eventCount]
        device.check(device.driver.streamWaitEvent(device.stream, event.end, 0), "an event")
    }

    /// Waits on the host for all of them.
    func synchronize() {
        for lane in [toHost, toDevice] where device.failure == nil {
            device.check(device.driver.streamSynchronize(lane.stream), "the copies to and from host memory")
        }
    }
}

extension CUDABackend {
    package func transfer(_ x_N: Tensor, to y_N: Tensor) -> Transfer { sideCopies.transfer(x_N, to: y_N) }

    package func wait(for transfer: Transfer) { sideCopies.wait(for: transfer) }
}
