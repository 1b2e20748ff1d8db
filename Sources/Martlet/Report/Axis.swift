internal import MartletCore

/// A range with round tick marks.
struct Axis {
    let low: Double
    let high: Double
    let ticks: [Double]

    /// An axis over `values` with about `count` ticks at multiples of 1, 2 or 5; the range ends at ticks if `isRounded`.
    init(_ values: [Double], tickCount: Int, isRounded: Bool = true, includesZero: Bool = false) {
        let finite = values.filter(\.isFinite)
        var low = finite.min() ?? 0, high = finite.max() ?? 1
        if includesZero { (low, high) = (min(low, 0), max(high, 0)) }
        if high - low < 1e-12 * max(low.magnitude, high.magnitude, 1e-30) {
            let room = max(low.magnitude * 0.1, 1e-9)
            (low, high) = (includesZero && low == 0 ? 0 : low - room, high + room)
        }
        let rough = (high - low) / Double(max(tickCount, 1))
        var power = 1.0
        while power > rough { power /= 10 }
        while power * 10 <= rough { power *= 10 }
        let step = power * ([1, 2, 5, 10].first { $0 * power >= rough * 0.999 } ?? 10)
        if isRounded { (low, high) = ((low / step).rounded(.down) * step, (high / step).rounded(.up) * step) }
        self.low = low
        self.high = high
        let first = (low / step - 1e-6).rounded(.up)
        ticks = (0...(2 * tickCount + 4)).map { (first + Double($0)) * step }.filter { $0 <= high + step * 1e-6 }
    }

    /// 0 at the low end, 1 at the high end.
    func position(_ value: Double) -> Double { (value - low) / (high - low) }
}
