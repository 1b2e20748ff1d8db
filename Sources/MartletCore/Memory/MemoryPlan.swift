/// The memory table: every row of a run's memory, known before the first step.
package struct MemoryPlan: Sendable, Equatable {
    package struct Row: Sendable, Equatable {
        package var name: String
        package var byteCount: Int
        /// What was chosen for this row and why, if there was a choice.
        package var note: String?

        package init(_ name: String, _ byteCount: Int, note: String? = nil) {
            self.name = name
            self.byteCount = byteCount
            self.note = note
        }
    }

    package var rows: [Row]
    /// Of host memory, where the rest is a device's.
    package var hostRows: [Row]

    package init(rows: [Row] = [], hostRows: [Row] = []) {
        self.rows = rows
        self.hostRows = hostRows
    }

    package var byteCount: Int { rows.reduce(0) { $0 + $1.byteCount } }
    package var hostByteCount: Int { hostRows.reduce(0) { $0 + $1.byteCount } }
}

/// Bytes as people read them: "1.42 GiB".
package func formatBytes(_ count: Int) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"]
    var value = Double(count), unit = 0
    while value >= 1024, unit < units.count - 1 { (value, unit) = (value / 1024, unit + 1) }
    return unit == 0 ? "\(count) B" : "\(fixed(value, value < 10 ? 2 : value < 100 ? 1 : 0)) \(units[unit])"
}

/// `value` with this many decimals, as printf would print it (Core has no Foundation).
package func fixed(_ value: Double, _ decimals: Int) -> String {
    guard value.isFinite else { return "\(value)" }
    let scale = (0..<decimals).reduce(1.0) { power, _ in power * 10 }
    let scaled = (value.magnitude * scale).rounded()
    guard scaled < 9e15 else { return "\(value)" }
    let whole = Int(scaled) / Int(scale), part = Int(scaled) % Int(scale)
    let digits = String(part)
    let sign = value < 0 && scaled != 0 ? "-" : ""
    return sign + String(whole)
        + (decimals == 0 ? "" : "." + String(repeating: "0", count: decimals - digits.count) + digits)
}
