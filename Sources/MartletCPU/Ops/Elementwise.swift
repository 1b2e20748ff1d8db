package import MartletCore

extension CPUBackend {
    /// Parts that a reduction over a whole tensor is cut into, for any number of threads.
    static let partCount = 64

    package func zero(_ x_N: Tensor) {
        guard x_N.count > 0 else { return }
        let x: UnsafeMutablePointer<UInt8> = pointer(at: x_N.address)
        workers.run(over: x_N.byteCount, by: 4 * elementsPerTask) { range, _ in
            (x + range.lowerBound).update(repeating: 0, count: range.count)
        }
    }

    package func set(_ y_N: Tensor, to x_N: Tensor) {
        precondition(x_N.count == y_N.count && x_N.dtype == y_N.dtype)
        guard x_N.count > 0 else { return }
        let x: UnsafeMutablePointer<UInt8> = pointer(at: x_N.address)
        let y: UnsafeMutablePointer<UInt8> = pointer(at: y_N.address)
        workers.run(over: x_N.byteCount, by: 4 * elementsPerTask) { range, _ in
            (y + range.lowerBound).update(from: x + range.lowerBound, count: range.count)
        }
    }

    package func add(_ x_N: Tensor, adding y_N: Tensor) {
        precondition(x_N.count == y_N.count)
        guard x_N.count > 0 else { return }
        let x = x_N.floats, y = y_N.floats
        workers.run(over: x_N.count, by: elementsPerTask) { range, _ in
            accumulate(range.count, 1, x + range.lowerBound, into: y + range.lowerBound)
        }
    }

    package func fillUniform(_ x_N: Tensor, bound: Float, seed: UInt64) {
        fill(x_N) { i in
            var stream = RandomStream(seed: seed, counter: i)
            return (2 * stream.uniform() - 1) * bound
        }
    }

    package func fillNormal(_ x_N: Tensor, standardDeviation: Float, seed: UInt64) {
        fill(x_N) { i in
            var stream = RandomStream(seed: seed, counter: 2 * i)
            return stream.normal() * standardDeviation
        }
    }

    private func fill(_ x_N: Tensor, _ value: (UInt64) -> Float) {
        guard x_N.count > 0 else { return }
        let x = x_N.floats
        workers.run(over: x_N.count, by: elementsPerTask) { range, _ in
            for i in range { x[i] = value(UInt64(i)) }
        }
    }

    package func sumsOfSquares(of tensors: [Tensor]) -> [Double] {
        tensors.map(squares)
    }

    package func sumsOfSquares(of tensors: [Tensor], into sums_N: Tensor) {
        precondition(sums_N.dtype == .int64 && sums_N.count == tensors.count)
        let bits = sumsOfSquares(of: tensors).map(\.bitPattern)
        bits.withUnsafeBytes { upload($0, as: .int64, into: sums_N) }
    }

    private func squares(_ x_N: Tensor) -> Double {
        reduce(x_N) { x, count in
            var sum = SIMD8<Double>.zero, rest = 0.0
            forEachLanes(count) {
                let value = SIMD8<Double>(load(x + $0))
                sum += value * value
            } tail: {
                rest += Double(x[$0]) * Double(x[$0])
            }
            return sum.sum() + rest
        }
    }

    package func isFinite(_ x_N: Tensor) -> Bool {
        let sum = reduce(x_N) { x, count in
            // 0 * x is 0 for a finite x and NaN for any other.
            var sum = Lanes.zero, rest: Float = 0
            forEachLanes(count) {
                sum += 0 * load(x + $0)
            } tail: {
                rest += 0 * x[$0]
            }
            return Double(total(sum) + rest)
        }
        return sum == 0
    }

    /// The sum of `part` over fixed parts of `x_N`, added up in order.
    private func reduce(_ x_N: Tensor, _ part: (Floats, Int) -> Double) -> Double {
        guard x_N.count > 0 else { return 0 }
        let x = x_N.floats
        let size = max(1024, roundUp(ceilDiv(x_N.count, CPUBackend.partCount), to: 1024))
        workers.run(over: x_N.count, by: size) { range, _ in
            partials[range.lowerBound / size] = part(x + range.lowerBound, range.count)
        }
        return (0..<ceilDiv(x_N.count, size)).reduce(0) { $0 + partials[$1] }
    }
}
