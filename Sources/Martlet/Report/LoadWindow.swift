/// The expert load of the last steps.
struct LoadWindow {
    static let length = 32
    private var steps: [[[Int]]] = []

    mutating func add(_ load_LE: [[Int]]) {
        guard !load_LE.isEmpty else { return }
        if steps.count == LoadWindow.length { steps.removeFirst() }
        steps.append(load_LE)
    }

    var stepCount: Int { steps.count }

    /// Tokens of each expert over the window, a row a sparse layer.
    var sum_LE: [[Int]] {
        guard var sum = steps.first else { return [] }
        for load in steps.dropFirst() {
            for (l, row) in load.enumerated() {
                for (e, count) in row.enumerated() { sum[l][e] += count }
            }
        }
        return sum
    }
}
