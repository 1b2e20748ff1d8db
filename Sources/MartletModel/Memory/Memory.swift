package import MartletCore

/// Where a model's memory is carved: the backend's own, and, for what can wait there, the host's.
package struct Memory {
    package let device: Arena
    package let host: Arena

    package init(device: Arena, host: Arena) {
        self.device = device
        self.host = host
    }

    /// With nothing behind it, for planning.
    package static func measuring() -> Memory { Memory(device: .measuring(), host: .measuring()) }
}
