import MartletCore

// What the forward and the backward pass of the experts share: waves of routed rows, and how rows are gathered.

/// Routed rows that are in work at a time, which bounds the scratch memory.
let waveRows = 4096
/// Rows of one expert that one task takes, at most; also the rows of a matrix product.
let segmentRows = 512
/// Columns of the hidden state that one task of a wave's second half owns.
let hiddenPanel = 128

/// With W = min(R, 4096): the segments of a wave (3 (E + W / 512 + 1) ints); of every routed row the activations (F)
/// and A values for each of p1 = A1 dropout(x) and p2 = A2 dropout(act), the H values that it adds to its token, and if
/// it trains 2F for the pre-activations' gradients and 2A more; every routed row's place (R ints); for every thread 512
/// rows of max(H, F) and of F.
struct ExpertsScratch {
    let segments: Ints
    /// Where in `order_R` the row t * K + k stands.
    let place: Ints
    let sum: Floats
    let act: Floats
    let p1: Floats
    let p2: Floats
    let dgateUp: Floats
    /// s dgateUp B1
    let q1: Floats
    /// s dy B2, then times the routing weight
    let q2: Floats
    let wide: PerWorker
    let narrow: PerWorker
    let extra: PerWorker

    init(_ scratch: inout Scratch, _ size: ExpertsSize, trains: Bool, threads: Int) {
        let rows = min(size.r, waveRows), segment = min(rows, segmentRows)
        segments = scratch.ints(3 * (size.e + rows / segmentRows + 1))
        place = scratch.ints(size.r)
        sum = scratch.floats(rows * size.h)
        act = scratch.floats(rows * size.f)
        p1 = scratch.floats(rows * size.a)
        p2 = scratch.floats(rows * size.a)
        dgateUp = scratch.floats(trains ? rows * 2 * size.f : 0)
        q1 = scratch.floats(trains ? rows * size.a : 0)
        q2 = scratch.floats(trains ? rows * size.a : 0)
        let width = max(size.h, size.f, hiddenPanel)
        wide = scratch.perWorker(threads, segment * width)
        narrow = scratch.perWorker(threads, segment * max(size.f, hiddenPanel))
        extra = scratch.perWorker(threads, trains ? segment * max(size.f, hiddenPanel) : 0)
    }
}

/// Consecutive rows of `order_R` that one expert has in a wave: at most 512.
struct ExpertSegment {
    var expert: Int
    /// Position in `order_R`.
    var start: Int
    var count: Int
    /// Position in the wave, which is where its rows stand in the scratch memory.
    var local: Int
}

/// A wave: a stretch of `order_R`, cut into segments.
struct ExpertWave {
    let table: Ints
    var start = 0
    var end = 0
    var count = 0

    subscript(i: Int) -> ExpertSegment {
        let entry = table + 3 * i
        return ExpertSegment(
            expert: Int(entry[0]), start: Int(entry[1]), count: Int(entry[2]), local: Int(entry[1]) - start)
    }
}

extension CPUBackend {
    func forEachWave(_ size: ExpertsSize, _ offset: Ints, _ table: Ints, _ body: (ExpertWave) -> Void) {
        var expert = 0
        var row = 0
        while row < size.r {
            let end = waveEnd(from: row, size, offset)
            var wave = ExpertWave(table: table, start: row, end: end)
            while row < end {
                while Int(offset[expert + 1]) <= row { expert += 1 }
                let left = min(end, Int(offset[expert + 1])) - row
                // Even parts: a product of few rows costs as much packing as one of many.
                let count = ceilDiv(left, ceilDiv(left, segmentRows))
                let entry = table + 3 * wave.count
                (entry[0], entry[1], entry[2]) = (Int32(expert), Int32(row), Int32(count))
                wave.count += 1
                row += count
            }
            body(wave)
        }
    }

    /// Where a wave ends: behind an expert's last row, unless it would be short then.
    private func waveEnd(from start: Int, _ size: ExpertsSize, _ offset: Ints) -> Int {
        let most = min(size.r, start + waveRows)
        var end = start
        for expert in 1...size.e where Int(offset[expert]) <= most { end = Int(offset[expert]) }
        return end > start + waveRows / 2 ? end : most
    }

    /// Notes the place of every routed row.
    func findPlaces(_ size: ExpertsSize, _ order: Ints, into place: Ints) {
        workers.run(over: size.r, by: elementsPerTask / 4) { rows, _ in
            for row in rows { place[Int(order[row])] = Int32(row) }
        }
    }
}

/// One call of either direction, as its tasks see it.
protocol ExpertsPass {
    var product: MatrixProduct { get }
    var size: ExpertsSize { get }
    var scratch: ExpertsScratch { get }
    /// The flat index t * K + k of the tile's first row, in the step.
    var firstFlat: Int { get }
    var order: Ints { get }
}

extension ExpertsPass {
    /// p = dropout(input) A^T for the segment's rows of a `width`-wide input, which is dropped in place.
    func dropAndProject(_ segment: ExpertSegment, _ adapter: LoRA, _ input: Floats, width: Int, into p: Floats) {
        if let mask = DropoutMask(adapter.dropout) { drop(mask, segment, input, 0..<width, width: width) }
        let a = Operand(adapter.a.floats + segment.expert * adapter.rank * width, width).transposed
        product(segment.count, adapter.rank, width, Operand(input, width), a, into: p, adapter.rank)
    }

    /// Columns of the tokens' rows, one for each routed row.
    func gather(_ source: Floats, _ order: Ints, _ n: Int, _ columns: Range<Int>, into rows: Floats) {
        for i in 0..<n {
            let row = source + Int(order[i]) / size.k * size.h + columns.lowerBound
            (rows + i * columns.count).update(from: row, count: columns.count)
        }
    }

    /// Applies the mask to `columns` of a `width`-wide input of the segment's rows.
    func drop(
        _ mask: DropoutMask, _ segment: ExpertSegment, _ rows: Floats, _ columns: Range<Int>, width: Int
    ) {
        for i in 0..<segment.count {
            mask.apply(
                rows + i * columns.count, columns.count, row: firstFlat + Int(order[segment.start + i]),
                column: columns.lowerBound, width: width)
        }
    }
}

/// Tokens that one task adds rows to.
let combinedTokens = 128

extension ExpertsPass {
    /// y += the wave's rows of `scratch.sum` that belong to these tokens, in the order of the experts; times the
    /// routing weights, where there are any.
    func combine(_ tokens: Range<Int>, of wave: ExpertWave, weight: Floats?, into y: Floats) {
        let end = Int32(wave.end)
        for token in tokens {
            let place = scratch.place + token * size.k
            var next = Int32(wave.start)
            while true {
                var row = end, chosen = 0
                for k in 0..<size.k where place[k] >= next && place[k] < row { (row, chosen) = (place[k], k) }
                if row == end { break }
                accumulate(
                    size.h, weight.map { $0[token * size.k + chosen] } ?? 1,
                    scratch.sum + (Int(row) - wave.start) * size.h, into: y + token * size.h)
                next = row + 1
            }
        }
    }
}
