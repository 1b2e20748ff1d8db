import MartletCore

/// Rows and columns of C that the inner kernel holds in registers, and the depth packed at a time.
private let kernelRows = 4
private let kernelColumns = 8
private let kernelDepth = 256

/// The matrix product in plain Swift, for machines with nothing faster: panels of B packed eight columns wide, four rows of C at a time.
/// Sums run over k in ascending order within blocks of 256.
func ownProduct(
    _ m: Int, _ n: Int, _ k: Int, _ a: Operand, _ b: Operand, into c: Floats, _ rowStep: Int, alpha: Float, adds: Bool
) {
    if !adds { for row in 0..<m { (c + row * rowStep).update(repeating: 0, count: n) } }
    let rowCount = roundUp(m, to: kernelRows)
    withUnsafeTemporaryAllocation(of: Float.self, capacity: (rowCount + kernelColumns) * kernelDepth) { packed in
        guard let packedA = packed.baseAddress else { return }
        let packedB = packedA + rowCount * kernelDepth
        for k0 in stride(from: 0, to: k, by: kernelDepth) {
            let depth = min(kernelDepth, k - k0)
            packRows(a, m, k0, depth, into: packedA, alpha: alpha)
            for column in stride(from: 0, to: n, by: kernelColumns) {
                let width = min(kernelColumns, n - column)
                packColumns(b, column, width, k0, depth, into: packedB)
                for row in stride(from: 0, to: m, by: kernelRows) {
                    multiply(
                        packedA + row * depth, packedB, depth, into: c + row * rowStep + column, rowStep,
                        min(kernelRows, m - row), width)
                }
            }
        }
    }
}

/// A[0..<m, k0..<k0 + depth] times alpha, four rows interleaved, missing rows as zero.
private func packRows(_ a: Operand, _ m: Int, _ k0: Int, _ depth: Int, into packed: Floats, alpha: Float) {
    let (rowStep, depthStep) = a.isTransposed ? (1, a.stride) : (a.stride, 1)
    var write = packed
    for row in stride(from: 0, to: m, by: kernelRows) {
        let present = min(kernelRows, m - row)
        for p in 0..<depth {
            let source = a.start + row * rowStep + (k0 + p) * depthStep
            for i in 0..<kernelRows { write[i] = i < present ? alpha * source[i * rowStep] : 0 }
            write += kernelRows
        }
    }
}

/// B[k0..<k0 + depth, column..<column + width], eight columns wide, missing columns as zero.
private func packColumns(
    _ b: Operand, _ column: Int, _ width: Int, _ k0: Int, _ depth: Int, into packed: Floats
) {
    let (depthStep, columnStep) = b.isTransposed ? (1, b.stride) : (b.stride, 1)
    let source = b.start + column * columnStep + k0 * depthStep
    if width == kernelColumns && columnStep == 1 {
        for p in 0..<depth { store(load(source + p * depthStep), to: packed + p * kernelColumns) }
        return
    }
    for j in 0..<kernelColumns {
        for p in 0..<depth {
            packed[p * kernelColumns + j] = j < width ? source[p * depthStep + j * columnStep] : 0
        }
    }
}

/// C[0..<rows, 0..<columns] += packed A times packed B.
private func multiply(
    _ a: Floats, _ b: Floats, _ depth: Int, into c: Floats, _ rowStep: Int, _ rows: Int, _ columns: Int
) {
    var sum0 = Lanes.zero, sum1 = Lanes.zero, sum2 = Lanes.zero, sum3 = Lanes.zero
    var a = a, b = b
    for _ in 0..<depth {
        let right = load(b)
        sum0 += right * a[0]
        sum1 += right * a[1]
        sum2 += right * a[2]
        sum3 += right * a[3]
        a += kernelRows
        b += kernelColumns
    }
    add(sum0, to: c, columns)
    if rows > 1 { add(sum1, to: c + rowStep, columns) }
    if rows > 2 { add(sum2, to: c + 2 * rowStep, columns) }
    if rows > 3 { add(sum3, to: c + 3 * rowStep, columns) }
}

private func add(_ sum: Lanes, to c: Floats, _ columns: Int) {
    if columns == kernelColumns { return store(load(c) + sum, to: c) }
    for j in 0..<columns { c[j] += sum[j] }
}
