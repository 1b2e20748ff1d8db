package import MartletCore

extension CPUBackend {
    package func swiGLU(_ gate_TF: Tensor, _ up_TF: Tensor, into y_TF: Tensor) {
        precondition(gate_TF.count == up_TF.count && gate_TF.count == y_TF.count)
        guard y_TF.count > 0 else { return }
        let gate = gate_TF.floats, up = up_TF.floats, y = y_TF.floats
        workers.run(over: y_TF.count, by: elementsPerTask / 4) { range, _ in
            let i = range.lowerBound
            gatedUnit(range.count, gate + i, up + i, into: y + i)
        }
    }

    package func swiGLUBackward(
        _ gate_TF: Tensor, _ up_TF: Tensor, _ dy_TF: Tensor, into dgate_TF: Tensor, _ dup_TF: Tensor
    ) {
        precondition(gate_TF.count == up_TF.count && gate_TF.count == dy_TF.count)
        precondition(gate_TF.count == dgate_TF.count && gate_TF.count == dup_TF.count)
        guard dy_TF.count > 0 else { return }
        let gate = gate_TF.floats, up = up_TF.floats, dy = dy_TF.floats
        let dgate = dgate_TF.floats, dup = dup_TF.floats
        workers.run(over: dy_TF.count, by: elementsPerTask / 4) { range, _ in
            let i = range.lowerBound
            gatedUnitBackward(range.count, gate + i, up + i, dy + i, into: dgate + i, dup + i)
        }
    }
}

/// y = silu(gate) * up
func gatedUnit(_ count: Int, _ gate: Floats, _ up: Floats, into y: Floats) {
    forEachGroup(count) { i, n in
        let g = load(gate + i, upTo: n)
        store(g * sigmoid(g) * load(up + i, upTo: n), to: y + i, upTo: n)
    }
}

/// dup = dy silu(gate); dgate = dy up sigmoid(gate) (1 + gate (1 - sigmoid(gate))). Results may overwrite inputs.
func gatedUnitBackward(
    _ count: Int, _ gate: Floats, _ up: Floats, _ dy: Floats, into dgate: Floats, _ dup: Floats
) {
    forEachGroup(count) { i, n in
        let g = load(gate + i, upTo: n), d = load(dy + i, upTo: n), u = load(up + i, upTo: n)
        let s = sigmoid(g)
        store(d * u * (s * (1 + g * (1 - s))), to: dgate + i, upTo: n)
        store(d * (g * s), to: dup + i, upTo: n)
    }
}
