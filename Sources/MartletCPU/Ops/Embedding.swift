package import MartletCore

extension CPUBackend {
    package func embedding(_ tokens_T: Tensor, _ table_VH: Tensor, into x_TH: Tensor) {
        let (vocabulary, hidden) = (table_VH.shape[0], table_VH.shape[1])
        precondition(x_TH.count == tokens_T.count * hidden)
        guard x_TH.count > 0 else { return }
        let tokens = tokens_T.ints, table = table_VH.floats, x = x_TH.floats
        workers.run(over: tokens_T.count, by: 64) { rows, _ in
            for row in rows {
                let token = Int(tokens[row])
                precondition(token >= 0 && token < vocabulary, "token \(token) of \(vocabulary)")
                (x + row * hidden).update(from: table + token * hidden, count: hidden)
            }
        }
    }

    /// Tokens repeat, so a task owns columns of the table and walks all rows in order.
    package func embeddingBackward(_ tokens_T: Tensor, _ dx_TH: Tensor, accumulating dtable_VH: Tensor) {
        let hidden = dtable_VH.shape[1]
        precondition(dx_TH.count == tokens_T.count * hidden)
        guard dx_TH.count > 0 else { return }
        let tokens = tokens_T.ints, dx = dx_TH.floats, dtable = dtable_VH.floats
        workers.run(over: hidden, by: 128) { columns, _ in
            for row in 0..<tokens_T.count {
                let source = dx + row * hidden + columns.lowerBound
                accumulate(columns.count, 1, source, into: dtable + Int(tokens[row]) * hidden + columns.lowerBound)
            }
        }
    }
}
