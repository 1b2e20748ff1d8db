package import MartletCore

/// Rows that one task of a norm handles, and that one partial sum of its weight's gradient covers.
let normRows = 64

/// Partial gradients of a norm's weight: one row for each `normRows` rows of the input.
/// ceil(rows / 64) x width floats.
struct NormScratch {
    let dweight: Floats

    init(_ scratch: inout Scratch, rows: Int, width: Int) {
        dweight = scratch.floats(ceilDiv(rows, normRows) * width)
    }
}

extension CPUBackend {
    package func rmsNorm(_ x_TH: Tensor, _ weight_H: Tensor, epsilon: Float, into y_TH: Tensor) {
        let width = weight_H.count
        precondition(x_TH.count == y_TH.count && x_TH.count % width == 0)
        guard x_TH.count > 0 else { return }
        let x = x_TH.floats, weight = weight_H.floats, y = y_TH.floats
        workers.run(over: x_TH.count / width, by: normRows) { rows, _ in
            for row in rows {
                normalize(width, x + row * width, weight, epsilon: epsilon, into: y + row * width)
            }
        }
    }

    package func rmsNormBackward(
        _ x_TH: Tensor, _ weight_H: Tensor, epsilon: Float, _ dy_TH: Tensor,
        adding dx_TH: Tensor, accumulating dweight_H: Tensor?
    ) {
        let width = weight_H.count
        precondition(x_TH.count == dy_TH.count && x_TH.count == dx_TH.count && x_TH.count % width == 0)
        guard x_TH.count > 0 else { return }
        let x = x_TH.floats, weight = weight_H.floats, dy = dy_TH.floats, dx = dx_TH.floats
        let rowCount = x_TH.count / width
        var scratch = scratch()
        let partial = dweight_H.map { _ in NormScratch(&scratch, rows: rowCount, width: width).dweight }
        workers.run(over: rowCount, by: normRows) { rows, _ in
            let sums = partial.map { $0 + rows.lowerBound / normRows * width }
            sums?.update(repeating: 0, count: width)
            for row in rows {
                normalizeBackward(
                    width, x + row * width, weight, epsilon: epsilon, dy + row * width, into: dx + row * width,
                    adds: true,
                    dweight: sums)
            }
        }
        if let partial, let dweight_H { addRows(ceilDiv(rowCount, normRows), width, partial, into: dweight_H.floats) }
    }

    /// y[j] += sum over rows of x[row, j], rows in order.
    func addRows(_ count: Int, _ width: Int, _ x: Floats, into y: Floats) {
        workers.run(over: width, by: 256) { columns, _ in
            for row in 0..<count {
                accumulate(columns.count, 1, x + row * width + columns.lowerBound, into: y + columns.lowerBound)
            }
        }
    }
}

/// 1 / sqrt(mean(x^2) + epsilon)
@inline(__always) private func inverseRootMeanSquare(_ width: Int, _ x: Floats, _ epsilon: Float) -> Float {
    1 / (dot(width, x, x) / Float(width) + epsilon).squareRoot()
}

/// y = w * x / rms(x); y may be x.
@inline(__always) func normalize(_ width: Int, _ x: Floats, _ weight: Floats, epsilon: Float, into y: Floats) {
    let scale = inverseRootMeanSquare(width, x, epsilon)
    forEachLanes(width) {
        store(load(weight + $0) * (load(x + $0) * scale), to: y + $0)
    } tail: {
        y[$0] = weight[$0] * (x[$0] * scale)
    }
}

/// With r = 1 / rms(x): dx (+)= r (w dy) - x r^3 <w dy, x> / width; dweight += dy x r. dx may be dy where it overwrites.
@inline(__always) func normalizeBackward(
    _ width: Int, _ x: Floats, _ weight: Floats, epsilon: Float, _ dy: Floats, into dx: Floats, adds: Bool,
    dweight: Floats?
) {
    let scale = inverseRootMeanSquare(width, x, epsilon)
    var sum = Lanes.zero, rest: Float = 0
    forEachLanes(width) {
        sum += load(weight + $0) * load(dy + $0) * load(x + $0)
    } tail: {
        rest += weight[$0] * dy[$0] * x[$0]
    }
    if let dweight {
        forEachLanes(width) {
            store(load(dweight + $0) + load(dy + $0) * (load(x + $0) * scale), to: dweight + $0)
        } tail: {
            dweight[$0] += dy[$0] * (x[$0] * scale)
        }
    }
    let pull = (total(sum) + rest) / Float(width) * scale * scale * scale
    forEachGroup(width) { i, n in
        let dnormal = load(weight + i, upTo: n) * load(dy + i, upTo: n)
        let gradient = dnormal * scale - load(x + i, upTo: n) * pull
        store(adds ? load(dx + i, upTo: n) + gradient : gradient, to: dx + i, upTo: n)
    }
}
