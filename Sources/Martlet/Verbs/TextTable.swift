internal import MartletCore

/// Rows of cells as lines with aligned columns; the columns in `rightAligned` end flush, the others begin flush.
func aligned(_ rows: [[String]], rightAligned: Set<Int> = []) -> [String] {
    let columnCount = rows.map(\.count).max() ?? 0
    let widths = (0..<columnCount).map { column in rows.map { $0.count > column ? $0[column].count : 0 }.max() ?? 0 }
    return rows.map { row in
        let cells = row.enumerated().map { column, cell in
            let space = String(repeating: " ", count: widths[column] - cell.count)
            return rightAligned.contains(column) ? space + cell : cell + space
        }
        var line = cells.joined(separator: "  ")
        while line.last == " " { line.removeLast() }
        return line
    }
}

/// 30532122624 as "30.53 B", as model sizes are given.
func formatCount(_ count: Int) -> String {
    for (size, unit) in [(1_000_000_000, "B"), (1_000_000, "M"), (1000, "k")] where count >= size {
        let value = Double(count) / Double(size)
        return fixed(value, value < 100 ? 2 : 1) + " " + unit
    }
    return "\(count)"
}
