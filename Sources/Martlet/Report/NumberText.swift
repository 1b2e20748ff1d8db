internal import MartletCore

/// Numbers as people read them.
enum NumberText {
    /// Four significant digits at most: 0.0123, 12.35, 1234, 1.2e-05.
    static func short(_ value: Double) -> String {
        guard value.isFinite else { return "\(value)" }
        let magnitude = value.magnitude
        if magnitude == 0 { return "0" }
        if magnitude < 1e-3 || magnitude >= 1e7 { return scientific(value) }
        return trimmed(
            fixed(value, magnitude < 0.01 ? 5 : magnitude < 1 ? 4 : magnitude < 10 ? 3 : magnitude < 100 ? 2 : 1))
    }

    /// 1234567 -> "1.23 M".
    static func count(_ value: Int) -> String {
        let units: [(Double, String)] = [(1e12, " T"), (1e9, " B"), (1e6, " M"), (1e4, " k")]
        for (scale, unit) in units where Double(value) >= scale {
            let divisor = unit == " k" ? 1e3 : scale
            let scaled = Double(value) / divisor
            return fixed(scaled, scaled < 10 ? 2 : scaled < 100 ? 1 : 0) + unit
        }
        return String(value)
    }

    /// "3 h 12 min", "45.2 s".
    static func duration(_ seconds: Double) -> String {
        if seconds < 1 { return fixed(seconds * 1000, 0) + " ms" }
        if seconds < 120 { return fixed(seconds, 1) + " s" }
        let minutes = Int(seconds / 60)
        return minutes < 120 ? "\(minutes) min" : "\(minutes / 60) h \(minutes % 60) min"
    }

    static func percent(_ share: Double) -> String {
        let percent = share * 100
        return (percent < 0.001 ? scientific(percent) : fixed(percent, percent < 0.1 ? 4 : percent < 10 ? 2 : 1)) + " %"
    }

    private static func scientific(_ value: Double) -> String {
        if value == 0 { return "0" }
        var exponent = 0, mantissa = value.magnitude
        while mantissa >= 9.995 { (mantissa, exponent) = (mantissa / 10, exponent + 1) }
        while mantissa < 0.9995 { (mantissa, exponent) = (mantissa * 10, exponent - 1) }
        return (value < 0 ? "-" : "") + trimmed(fixed(mantissa, 2)) + "e\(exponent)"
    }

    /// Without zeros at the end of the decimals.
    static func trimmed(_ text: String) -> String {
        guard text.contains(".") else { return text }
        var text = text
        while text.hasSuffix("0") { text.removeLast() }
        if text.hasSuffix(".") { text.removeLast() }
        return text
    }
}
