internal import Synchronization

/// Asks a run to finish its step, save and leave; safe from any thread and from a signal handler.
public final class StopSwitch: Sendable {
    private let flag = Atomic<Bool>(false)

    /// A switch that is off.
    public init() {}

    /// Whether somebody asked.
    public var isOn: Bool { flag.load(ordering: .relaxed) }

    /// Asks.
    public func stop() { flag.store(true, ordering: .relaxed) }
}
