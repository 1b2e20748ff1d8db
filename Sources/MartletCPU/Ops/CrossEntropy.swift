package import MartletCore

/// Logits that exist at a time: 4 M floats (16 MB), but at least 64 rows of them, so that a large vocabulary still
/// makes a matrix product worth its name.
private let logitCount = 1 << 22
private let fewestRows = 64
/// Rows of the head that one task multiplies with.
private let vocabularyPanel = 1024

/// B rows of hidden states and of their gradients, B x vocabulary logits, and the list of rows that have a target;
/// B = clamp(4 Mi / vocabulary, 64 ... 512).
struct CrossEntropyScratch {
    let blockRows: Int
    let rows: Ints
    let x: Floats
    let dx: Floats
    let logits: Floats

    init(_ scratch: inout Scratch, rows count: Int, hidden: Int, vocabulary: Int) {
        blockRows = min(count, max(fewestRows, min(512, logitCount / max(1, vocabulary))))
        rows = scratch.ints(count)
        x = scratch.floats(blockRows * hidden)
        dx = scratch.floats(blockRows * hidden)
        logits = scratch.floats(blockRows * vocabulary)
    }
}

extension CPUBackend {
    package func crossEntropy(
        _ x_TH: Tensor, _ head_VH: Tensor, _ targets_T: Tensor, gradientScale: Float?,
        into loss_T: Tensor, _ dx_TH: Tensor?, accumulating dhead_VH: Tensor?
    ) {
        let rowCount = targets_T.count, vocabulary = head_VH.shape[0], hidden = head_VH.shape[1]
        precondition(x_TH.count == rowCount * hidden && loss_T.count == rowCount)
        guard rowCount > 0 else { return }
        var layout = scratch()
        let scratch = CrossEntropyScratch(&layout, rows: rowCount, hidden: hidden, vocabulary: vocabulary)
        let targets = targets_T.ints, x = x_TH.floats, loss = loss_T.floats
        var trained = 0
        for row in 0..<rowCount where targets[row] >= 0 {
            precondition(Int(targets[row]) < vocabulary, "target \(targets[row]) of \(vocabulary)")
            scratch.rows[trained] = Int32(row)
            trained += 1
        }
        loss.update(repeating: 0, count: rowCount)
        let dx = gradientScale == nil ? nil : dx_TH
        if let dx { zero(dx) }
        for first in stride(from: 0, to: trained, by: scratch.blockRows) {
            let rows = scratch.rows + first, count = min(scratch.blockRows, trained - first)
            for i in 0..<count { (scratch.x + i * hidden).update(from: x + Int(rows[i]) * hidden, count: hidden) }
            makeLogits(count, scratch, head_VH)
            workers.run(over: count, by: 4) { range, _ in
                for i in range {
                    let row = Int(rows[i]), logits = scratch.logits + i * vocabulary
                    loss[row] = rowLoss(
                        loops, vocabulary, logits, target: Int(targets[row]), gradientScale: gradientScale)
                }
            }
            if let dx { hiddenGradient(count, rows, scratch, head_VH, into: dx.floats) }
            if gradientScale != nil, let dhead_VH { headGradient(count, scratch, into: dhead_VH) }
        }
    }

    private func makeLogits(_ count: Int, _ scratch: CrossEntropyScratch, _ head_VH: Tensor) {
        let vocabulary = head_VH.shape[0], hidden = head_VH.shape[1], head = head_VH.floats
        workers.run(over: vocabulary, by: vocabularyPanel) { panel, _ in
            product(
                count, panel.count, hidden, Operand(scratch.x, hidden),
                Operand(head + panel.lowerBound * hidden, hidden).transposed, into: scratch.logits + panel.lowerBound,
                vocabulary)
        }
    }

    /// dx = dlogits W, scattered to the rows that have a target.
    private func hiddenGradient(
        _ count: Int, _ rows: Ints, _ scratch: CrossEntropyScratch, _ head_VH: Tensor, into dx: Floats
    ) {
        let vocabulary = head_VH.shape[0], hidden = head_VH.shape[1], head = head_VH.floats
        workers.run(over: hidden, by: 256) { columns, _ in
            let part = scratch.dx + columns.lowerBound
            product(
                count, columns.count, vocabulary, Operand(scratch.logits, vocabulary),
                Operand(head + columns.lowerBound, hidden), into: part, hidden)
            for i in 0..<count {
                (dx + Int(rows[i]) * hidden + columns.lowerBound).update(from: part + i * hidden, count: columns.count)
            }
        }
    }

    /// dW += dlogits^T x
    private func headGradient(_ count: Int, _ scratch: CrossEntropyScratch, into dhead_VH: Tensor) {
        let vocabulary = dhead_VH.shape[0], hidden = dhead_VH.shape[1], dhead = dhead_VH.floats
        workers.run(over: vocabulary, by: vocabularyPanel) { panel, _ in
            product(
                panel.count, hidden, count, Operand(scratch.logits + panel.lowerBound, vocabulary).transposed,
                Operand(scratch.x, hidden), into: dhead + panel.lowerBound * hidden, hidden, adds: true)
        }
    }
}

/// log-sum-exp minus the target's logit. With a scale, the logits become (softmax - onehot) * scale.
private func rowLoss(
    _ loops: RowLoops, _ vocabulary: Int, _ logits: Floats, target: Int, gradientScale: Float?
) -> Float {
    let most = loops.maximum(vocabulary, logits), wanted = logits[target]
    let sum = loops.exponentiate(vocabulary, logits, minus: most)
    if let gradientScale {
        copy(vocabulary, logits, into: logits, scale: gradientScale / sum)
        logits[target] -= gradientScale
    }
    return Float(Double(sum).logarithm) + (most - wanted)
}
