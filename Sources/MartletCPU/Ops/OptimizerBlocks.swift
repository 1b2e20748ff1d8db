internal import MartletCore

/// One moment of a parameter in 8 bits: codes, and the scale of each block.
struct BlockMoment {
    private let codes: UnsafeMutablePointer<UInt8>
    private let scales: Floats
    private let table: MomentTable

    init(_ codes: Tensor, _ scales: Tensor, _ table: MomentTable) {
        precondition(scales.count == MomentScales.count(for: codes.count))
        self.codes = codes.codes
        self.scales = scales.floats
        self.table = table
    }

    func decode(_ range: Range<Int>, into x: Floats) {
        let scale = scales[range.lowerBound / MomentScales.blockSize], codes = codes + range.lowerBound
        table.values.withUnsafeBufferPointer { values in
            for i in 0..<range.count { x[i] = values[Int(codes[i])] * scale }
        }
    }

    func encode(_ x: Floats, _ range: Range<Int>) {
        // By bits, so that a NaN is the largest of all and stays.
        let scale = Float(bitPattern: (0..<range.count).reduce(UInt32(0)) { max($0, x[$1].magnitude.bitPattern) })
        scales[range.lowerBound / MomentScales.blockSize] = scale
        // The inverse of a denormal could overflow: such a block becomes zeros.
        let inverse = scale >= .leastNormalMagnitude ? 1 / scale : 0
        let codes = codes + range.lowerBound
        table.bounds.withUnsafeBufferPointer { bounds in
            table.starts.withUnsafeBufferPointer { starts in
                for i in 0..<range.count {
                    let scaled = x[i] * inverse
                    var code = Int(starts[Int(scaled.bitPattern >> 17)])
                    for _ in 0..<MomentTable.reach { code &+= bounds[code] < scaled ? 1 : 0 }
                    codes[i] = UInt8(truncatingIfNeeded: code)
                }
            }
        }
    }
}

extension AdamWUpdate {
    /// Whole blocks of a parameter: decoded, updated, coded again.
    func apply(
        _ range: Range<Int>, _ parameter: Floats, _ gradient: Floats, _ first: BlockMoment, _ second: BlockMoment
    ) {
        let size = MomentScales.blockSize
        withUnsafeTemporaryAllocation(of: Float.self, capacity: 2 * size) { moments in
            guard let m = moments.baseAddress else { return }
            let v = m + size
            for start in stride(from: range.lowerBound, to: range.upperBound, by: size) {
                let block = start..<min(start + size, range.upperBound)
                first.decode(block, into: m)
                second.decode(block, into: v)
                // The exact root, as a GPU's: the same bytes come out of every backend.
                apply(block.count, parameter + start, gradient + start, m, v) { $0.squareRoot() }
                first.encode(m, block)
                second.encode(v, block)
            }
        }
    }
}

extension Tensor {
    /// The codes of a moment.
    fileprivate var codes: UnsafeMutablePointer<UInt8> {
        precondition(dtype == .uint8, "codes are uint8, not \(dtype)")
        return pointer(at: address)
    }
}
