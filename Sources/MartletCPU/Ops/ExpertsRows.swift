import MartletCore

// What the forward and the backward pass of the experts share: waves of routed rows, and how rows are gathered.

/// Routed rows that are in work at a time, which bounds the scratch memory.
let waveRows = 4096
/// Rows of one expert that one task takes; also the rows of a matrix product.
let segmentRows = 256
/// Columns of the hidden state that one task of a wave's second half owns.
let hiddenPanel = 128

/// With W = min(R, 4096): the segments of a wave (3 (E + W / 256 + 1) ints); of every routed row the activations (F)
/// and A values for each of p1 = A1 dropout(x) and p2 = A2 dropout(act), and if it trains 2F for the pre-activations'
/// gradients and 2A more; for every thread 256 rows of max(H, F) and of F.
struct ExpertsScratch {
    let segments: Ints
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

/// Consecutive rows of `order_R` that one expert has in a wave: at most 256.
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
        for start in stride(from: 0, to: size.r, by: waveRows) {
            let end = min(size.r, start + waveRows)
            var wave = ExpertWave(table: table, start: start), row = start
            while row < end {
                while Int(offset[expert + 1]) <= row { expert += 1 }
                let count = min(segmentRows, min(end, Int(offset[expert + 1])) - row)
                let entry = table + 3 * wave.count
                (entry[0], entry[1], entry[2]) = (Int32(expert), Int32(row), Int32(count))
                wave.count += 1
                row += count
            }
            body(wave)
        }
    }
}

/// One call of either direction, as its tasks see it.
protocol ExpertsPass {
    var product: MatrixProduct { get }
    var size: ExpertsSize { get }
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
