/// Packs items into bins of one capacity by best fit, decreasing (Johnson 1973): from the longest item to the shortest,
/// each goes to the bin it fills best, and to a new bin where it fits none. Equal items keep their order, and of equal bins
/// the one filled last is taken, so one input has one result.
///
/// Returns the items of each bin, in the order of placing. Every length must be at most `capacity`.
package func bestFitDecreasing(lengths: [Int], capacity: Int) -> [[Int]] {
    let order = lengths.indices.sorted { (lengths[$1], $0) < (lengths[$0], $1) }
    var bins: [[Int]] = []
    var open = OpenBins(capacity: capacity)
    for item in order {
        let length = lengths[item]
        precondition(length <= capacity)
        if let (bin, room) = open.takeTightest(for: length) {
            bins[bin].append(item)
            open.insert(bin, room: room - length)
        } else {
            bins.append([item])
            open.insert(bins.count - 1, room: capacity - length)
        }
    }
    return bins
}

/// Bins by the room left in them, with a bit for each amount of room that some bin has.
private struct OpenBins {
    private var binsByRoom: [Int: [Int]] = [:]
    private var bits: [UInt64]

    init(capacity: Int) { bits = Array(repeating: 0, count: capacity / 64 + 1) }

    mutating func insert(_ bin: Int, room: Int) {
        guard room > 0 else { return }
        binsByRoom[room, default: []].append(bin)
        bits[room / 64] |= 1 << UInt64(room % 64)
    }

    /// Takes out the bin with the least room that is enough; of several, the one put in last.
    mutating func takeTightest(for length: Int) -> (bin: Int, room: Int)? {
        guard let room = leastRoom(atLeast: length), let bin = binsByRoom[room]?.popLast() else { return nil }
        if binsByRoom[room]?.isEmpty == true {
            binsByRoom[room] = nil
            bits[room / 64] &= ~(1 << UInt64(room % 64))
        }
        return (bin, room)
    }

    private func leastRoom(atLeast length: Int) -> Int? {
        var word = length / 64
        var candidates = bits[word] & (~0 << UInt64(length % 64))
        while candidates == 0 {
            word += 1
            guard word < bits.count else { return nil }
            candidates = bits[word]
        }
        return word * 64 + candidates.trailingZeroBitCount
    }
}
