package import MartletCore

extension CPUBackend {
    package func rotate(_ x_TND: Tensor, _ norm: HeadNorm?, _ rope: RoPE, _ positions_T: Tensor, into y_TND: Tensor) {
        guard x_TND.count > 0 else { return }
        let heads = x_TND.shape[1], size = x_TND.shape[2]
        let turn = Rotation(rope, positions_T, size)
        let x = x_TND.floats, y = y_TND.floats, weight = norm?.weight_D.floats
        workers.run(over: x_TND.shape[0], by: normRows) { rows, _ in
            for head in rows.lowerBound * heads..<rows.upperBound * heads {
                let from = x + head * size, to = y + head * size
                if let weight, let norm { normalize(size, from, weight, epsilon: norm.epsilon, into: to) }
                turn.apply(weight == nil ? from : to, row: head / heads, direction: 1, into: to)
            }
        }
    }

    package func rotateBackward(
        _ x_TND: Tensor, _ norm: HeadNorm?, _ rope: RoPE, _ positions_T: Tensor, _ dy_TND: Tensor, into dx_TND: Tensor
    ) {
        guard x_TND.count > 0 else { return }
        let heads = x_TND.shape[1], size = x_TND.shape[2]
        let turn = Rotation(rope, positions_T, size)
        let x = x_TND.floats, dy = dy_TND.floats, dx = dx_TND.floats
        var scratch = scratch()
        let partial = norm?.dweight_D.map { _ in NormScratch(&scratch, rows: x_TND.shape[0], width: size).dweight }
        workers.run(over: x_TND.shape[0], by: normRows) { rows, _ in
            let sums = partial.map { $0 + rows.lowerBound / normRows * size }
            sums?.update(repeating: 0, count: size)
            for head in rows.lowerBound * heads..<rows.upperBound * heads {
                let to = dx + head * size
                turn.apply(dy + head * size, row: head / heads, direction: -1, into: to)
                guard let norm else { continue }
                normalizeBackward(
                    size, x + head * size, norm.weight_D.floats, epsilon: norm.epsilon, to, into: to, adds: false,
                    dweight: sums)
            }
        }
        if let partial, let dweight = norm?.dweight_D {
            addRows(ceilDiv(x_TND.shape[0], normRows), size, partial, into: dweight.floats)
        }
    }
}

/// The rotation of pairs (x_j, x_{j + D/2}) by the angles of a row's position.
private struct Rotation {
    let cosine: Floats
    let sine: Floats
    let positions: Ints
    let positionCount: Int
    let half: Int

    init(_ rope: RoPE, _ positions_T: Tensor, _ size: Int) {
        half = size / 2
        precondition(size % 2 == 0 && rope.cosine_PJ.shape[1] == half && rope.sine_PJ.shape[1] == half)
        cosine = rope.cosine_PJ.floats
        sine = rope.sine_PJ.floats
        positions = positions_T.ints
        positionCount = rope.cosine_PJ.shape[0]
    }

    /// `direction` -1 turns back, which is the transpose; y may be x.
    @inline(__always) func apply(_ x: Floats, row: Int, direction: Float, into y: Floats) {
        let position = Int(positions[row])
        precondition(position >= 0 && position < positionCount, "position \(position) of \(positionCount)")
        let cosine = cosine + position * half, sine = sine + position * half
        forEachGroup(half) { j, n in
            let c = load(cosine + j, upTo: n), s = load(sine + j, upTo: n) * direction
            let a = load(x + j, upTo: n), b = load(x + half + j, upTo: n)
            store(a * c - b * s, to: y + j, upTo: n)
            store(b * c + a * s, to: y + half + j, upTo: n)
        }
    }
}
