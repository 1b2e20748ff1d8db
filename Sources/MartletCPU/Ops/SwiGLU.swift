package import MartletCore

extension CPUBackend {
    package func swiGLU(_ gate_TF: Tensor, _ up_TF: Tensor, into y_TF: Tensor) {
        precondition(gate_TF.count == up_TF.count && gate_TF.count == y_TF.count)
        guard y_TF.count > 0 else { return }
        let gate = gate_TF.floats, up = up_TF.floats, y = y_TF.floats
        workers.run(over: y_TF.count, by: elementsPerTask / 4) { range, _ in
            let i = range.lowerBound
            loops.gatedUnit(range.count, gate + i, up + i, into: y + i)
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
            loops.gatedUnitBackward(range.count, gate + i, up + i, dy + i, into: dgate + i, dup + i)
        }
    }
}

/// y = silu(gate) * up
func gatedUnit(_ count: Int, _ gate: Floats, _ up: Floats, into y: Floats) {
    forEachLanes(count) {
        let g = load(gate + $0)
        store(g * sigmoid(g) * load(up + $0), to: y + $0)
    } tail: {
        let g = Lanes(repeating: gate[$0])
        y[$0] = (g * sigmoid(g))[0] * up[$0]
    }
}

/// Results may overwrite inputs.
func gatedUnitBackward(
    _ count: Int, _ gate: Floats, _ up: Floats, _ dy: Floats, into dgate: Floats, _ dup: Floats
) {
    forEachLanes(count) {
        let d = gatedUnitGradients(load(gate + $0), load(up + $0), load(dy + $0))
        store(d.gate, to: dgate + $0)
        store(d.up, to: dup + $0)
    } tail: {
        let d = gatedUnitGradients(
            Lanes(repeating: gate[$0]), Lanes(repeating: up[$0]), Lanes(repeating: dy[$0]))
        dgate[$0] = d.gate[0]
        dup[$0] = d.up[0]
    }
}

/// dup = dy silu(gate); dgate = dy up sigmoid(gate) (1 + gate (1 - sigmoid(gate))).
@inline(__always) private func gatedUnitGradients(_ gate: Lanes, _ up: Lanes, _ dy: Lanes) -> (gate: Lanes, up: Lanes) {
    let s = sigmoid(gate)
    return (dy * up * (s * (1 + gate * (1 - s))), dy * (gate * s))
}
