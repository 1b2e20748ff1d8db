internal import MartletCore

/// Rows and columns of values as inline SVG: one path a level of opacity, so that thousands of cells stay small.
struct HeatMap {
    var title: String
    var rows: [[Double]]
    /// The values of no colour and of full colour.
    var bottom = 0.0
    var top: Double
    var rowName: String
    var columnName: String
    /// Number shown at the first and at the last column.
    var columnRange: (Int, Int)
    /// Draws cells of value 0 in the colour of a warning.
    var marksZero = false

    private let levelCount = 12
    private let width = 1000.0
    private let left = 46.0

    func svg() -> String {
        guard let columns = rows.first?.count, columns > 0 else { return "" }
        let cellWidth = (width - left - 8) / Double(columns)
        let cellHeight = min(max(280 / Double(rows.count), 7), 24)
        let height = Double(rows.count) * cellHeight
        var out =
            "<svg class=\"wide\" viewBox=\"0 0 \(text(width)) \(text(height + 40))\" role=\"img\" aria-label=\"\(HTML.escape(title))\">"
        out += "<rect class=\"frame\" x=\"\(text(left))\" y=\"4\" width=\"\(text(cellWidth * Double(columns)))\""
        out += " height=\"\(text(height))\"/>"
        out += "<g transform=\"translate(\(text(left)) 4) scale(\(fixed(cellWidth, 4)) \(fixed(cellHeight, 4)))\">"
        out += cells() + "</g>" + labels(cellHeight, height)
        return out + "</svg>"
    }

    private func cells() -> String {
        var paths = [String](repeating: "", count: levelCount + 1), zeros = ""
        for (r, row) in rows.enumerated() {
            for (c, value) in row.enumerated() where value.isFinite {
                let cell = "M\(c) \(r)h1v1h-1z"
                if value == 0, marksZero {
                    zeros += cell
                } else {
                    let level = Int((strength(value) * Double(levelCount)).rounded())
                    if level > 0 { paths[level] += cell }
                }
            }
        }
        let drawn = paths.enumerated().filter { !$1.isEmpty }.map { level, path in
            "<path fill=\"var(--heat)\" fill-opacity=\"\(fixed(Double(level) / Double(levelCount), 2))\" d=\"\(path)\"/>"
        }
        return drawn.joined() + (zeros.isEmpty ? "" : "<path fill=\"var(--warn)\" d=\"\(zeros)\"/>")
    }

    private func labels(_ cellHeight: Double, _ height: Double) -> String {
        let every = max(1, Int((16 / cellHeight).rounded(.up)))
        var out = ""
        for row in stride(from: 0, to: rows.count, by: every) {
            let y = 4 + (Double(row) + 0.5) * cellHeight
            out += "<text x=\"\(text(left - 8))\" y=\"\(text(y))\" dy=\".32em\" text-anchor=\"end\">\(row)</text>"
        }
        let below = text(height + 20)
        out += "<text x=\"\(text(left))\" y=\"\(below)\">\(columnRange.0)</text>"
        out += "<text x=\"\(text(width - 8))\" y=\"\(below)\" text-anchor=\"end\">\(columnRange.1)</text>"
        out +=
            "<text class=\"name\" x=\"\(text((left + width) / 2))\" y=\"\(below)\" text-anchor=\"middle\">\(columnName)</text>"
        let middle = text(4 + height / 2)
        return out
            + "<text class=\"name\" transform=\"translate(12 \(middle)) rotate(-90)\" text-anchor=\"middle\">\(rowName)</text>"
    }

    /// What the colours mean.
    func legend(zero: String, _ values: [(Double, String)]) -> String {
        var items = marksZero ? ["<span><i class=\"cell\" style=\"background:var(--warn)\"></i>\(zero)</span>"] : []
        for (value, name) in values {
            let opacity = fixed(strength(value), 2)
            items.append("<span><i class=\"cell\"><b style=\"opacity:\(opacity)\"></b></i>\(HTML.escape(name))</span>")
        }
        return "<p class=\"legend\">\(items.joined())</p>"
    }

    private func strength(_ value: Double) -> Double { min(max((value - bottom) / (top - bottom), 0), 1) }
    private func text(_ value: Double) -> String { NumberText.trimmed(fixed(value, 1)) }
}
