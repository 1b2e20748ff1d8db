package import MartletCore

/// What a profile tells apart.
package enum ProfileDetail: Sendable {
    case ops
    /// Launches of our kernels, products of cuBLASLt and attention of cuDNN, each with its op before it.
    case kernels
}

/// Device time, gathered with events around each op or kernel.
struct Profile {
    let detail: ProfileDetail
    /// That is being computed.
    var op = ""
    struct Entry {
        var count = 0
        var milliseconds = 0.0
    }
    var pending: [(name: String, start: Driver.Pointer, end: Driver.Pointer)] = []
}

extension Device {
    /// Runs `body` and, while profiling, takes its device time under `name`.
    func timed(_ name: @autoclosure () -> String, _ body: () -> Void) {
        guard let profile else { return body() }
        guard profile.detail == .ops else {
            self.profile?.op = name()
            body()
            self.profile?.op = profile.op
            return
        }
        record(name(), body)
    }

    /// The same for one launch, while profiling by kernel.
    func timedKernel(_ name: @autoclosure () -> String, _ body: () -> Void) {
        guard let profile, profile.detail == .kernels else { return body() }
        record(profile.op.isEmpty ? name() : "\(profile.op): \(name())", body)
    }

    private func record(_ name: String, _ body: () -> Void) {
        let start = mark()
        body()
        let end = mark()
        profile?.pending.append((name, start, end))
    }

    /// Ends profiling: device time by op, or kernel.
    func endProfile() -> [String: Profile.Entry] {
        var entries: [String: Profile.Entry] = [:]
        for (name, start, end) in profile?.pending ?? [] {
            entries[name, default: .init()].count += 1
            entries[name, default: .init()].milliseconds += milliseconds(from: start, to: end)
        }
        profile = nil
        return entries
    }
}

extension CUDABackend {
    /// Kernels launched and library calls made so far.
    package var launchCount: Int { device.launchCount }

    /// Device time of every op that `body` calls, or kernel that it launches, the largest first.
    package func profile(
        by detail: ProfileDetail = .ops, _ body: () throws(MartletError) -> Void
    ) throws(MartletError) -> [(name: String, count: Int, milliseconds: Double)] {
        device.profile = Profile(detail: detail)
        try body()
        let entries = device.endProfile()
        return entries.map { ($0.key, $0.value.count, $0.value.milliseconds) }.sorted { $0.2 > $1.2 }
    }

    /// Milliseconds of a call of `body` by the device's clock: the mean of `repeats` in a row, which get their numbers.
    /// With a `prepare`, which comes before each and does not count, every call is timed by itself.
    package func deviceMilliseconds(
        repeats: Int, preparing prepare: (() -> Void)? = nil, _ body: (Int) -> Void
    ) throws(MartletError) -> Double {
        var intervals: [(start: Driver.Pointer, end: Driver.Pointer)] = []
        for calls in prepare == nil ? [0..<repeats] : (0..<repeats).map({ $0..<$0 + 1 }) {
            prepare?()
            let start = device.mark()
            calls.forEach(body)
            intervals.append((start, device.mark()))
        }
        let total = intervals.reduce(0) { $0 + device.milliseconds(from: $1.start, to: $1.end) }
        if let failure = device.takeFailure() { throw failure }
        return total / Double(repeats)
    }
}
