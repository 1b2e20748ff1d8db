internal import MartletCore

/// A line chart as inline SVG. Colours are CSS variables of the page, so that it follows light and dark.
struct LineChart {
    struct Series {
        enum Look: String { case faint, strong, points }
        var name: String
        var look: Look
        /// CSS variable of the colour, without "--".
        var color: String
        var points: [(x: Double, y: Double)]
    }

    var title: String
    var series: [Series]
    var width = 1000.0
    var height = 320.0
    var includesZero = false
    var label: (Double) -> String = NumberText.short

    private var left: Double { 58 }
    private var right: Double { 12 }
    private var top: Double { 12 }
    private var bottom: Double { 34 }

    /// Empty if there is nothing to draw.
    func svg() -> String {
        let points = series.flatMap(\.points)
        guard !points.isEmpty else { return "" }
        let x = Axis(points.map(\.x), tickCount: width > 500 ? 8 : 4, isRounded: false)
        let y = Axis(points.map(\.y), tickCount: height > 220 ? 5 : 3, includesZero: includesZero)
        var out =
            "<svg\(width > 500 ? " class=\"wide\"" : "") viewBox=\"0 0 \(whole(width)) \(whole(height))\" role=\"img\" aria-label=\"\(HTML.escape(title))\">"
        out += axes(x, y)
        for series in series { out += draw(series, x, y) }
        return out + "</svg>"
    }

    private func axes(_ x: Axis, _ y: Axis) -> String {
        var out = ""
        for tick in y.ticks {
            let at = number(vertical(tick, y))
            out += "<path class=\"grid\" d=\"M\(number(left)) \(at)H\(number(width - right))\"/>"
            out += "<text x=\"\(number(left - 8))\" y=\"\(at)\" dy=\".32em\" text-anchor=\"end\">\(label(tick))</text>"
        }
        for tick in x.ticks where tick == tick.rounded() {
            let at = number(horizontal(tick, x))
            out +=
                "<text x=\"\(at)\" y=\"\(number(height - bottom + 18))\" text-anchor=\"middle\">\(whole(tick))</text>"
        }
        out += "<path class=\"axis\" d=\"M\(number(left)) \(number(height - bottom))H\(number(width - right))\"/>"
        let middle = number((left + width - right) / 2)
        return out
            + "<text class=\"name\" x=\"\(middle)\" y=\"\(number(height - 3))\" text-anchor=\"middle\">step</text>"
    }

    private func draw(_ series: Series, _ x: Axis, _ y: Axis) -> String {
        let places = series.points.filter { $0.y.isFinite }.map { (horizontal($0.x, x), vertical($0.y, y)) }
        let line = places.enumerated().map { ($0 == 0 ? "M" : "L") + "\(number($1.0)) \(number($1.1))" }.joined()
        let color = "stroke=\"var(--\(series.color))\""
        switch series.look {
        case .faint: return "<path class=\"faint\" \(color) d=\"\(line)\"/>"
        case .strong where places.count > 1: return "<path class=\"strong\" \(color) d=\"\(line)\"/>"
        case .strong, .points:
            let dots = places.map {
                "<circle cx=\"\(number($0.0))\" cy=\"\(number($0.1))\" r=\"3.5\" fill=\"var(--\(series.color))\"/>"
            }
            return "<path class=\"thin\" \(color) d=\"\(line)\"/>" + dots.joined()
        }
    }

    private func horizontal(_ value: Double, _ axis: Axis) -> Double {
        left + axis.position(value) * (width - left - right)
    }
    private func vertical(_ value: Double, _ axis: Axis) -> Double {
        height - bottom - axis.position(value) * (height - top - bottom)
    }
    private func number(_ value: Double) -> String { NumberText.trimmed(fixed(value, 1)) }
    private func whole(_ value: Double) -> String { fixed(value, 0) }

    /// Names and colours of the series.
    func legend() -> String {
        let items = series.filter { !$0.points.isEmpty }.map { series in
            "<span><i class=\"\(series.look.rawValue)\" style=\"--c:var(--\(series.color))\"></i>\(HTML.escape(series.name))</span>"
        }
        return items.count > 1 ? "<p class=\"legend\">\(items.joined())</p>" : ""
    }
}

extension Array where Element == (x: Double, y: Double) {
    /// At most `limit` points: each the mean of its neighbours.
    func thinned(to limit: Int) -> Self {
        guard count > limit else { return self }
        return (0..<limit).map { i in
            let part = self[i * count / limit..<(i + 1) * count / limit]
            let n = Double(part.count)
            return (part.reduce(0) { $0 + $1.x } / n, part.reduce(0) { $0 + $1.y } / n)
        }
    }

    /// Exponential moving average without the bias of its start; the longer the run, the smoother.
    func smoothed() -> Self {
        let weight = 1 - 2 / (Swift.max(Double(count) / 40, 1) + 1)
        var average = 0.0, total = 0.0
        return map { point in
            average = weight * average + (1 - weight) * point.y
            total = weight * total + (1 - weight)
            return (point.x, average / total)
        }
    }
}
