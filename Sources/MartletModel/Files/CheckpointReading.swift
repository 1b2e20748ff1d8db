package import MartletCore

extension Checkpoint {
    /// Fills `destination`, of the weight's shape, from disk, converting to its dtype. A value that is infinite or not a
    /// number is an error that names the stored tensor; whoever reads a weight again may skip that check.
    package func read(
        _ weight: Weight, into destination: Tensor, using backend: any Backend, checksValues: Bool
    ) throws(MartletError) {
        let shape = configuration.shape(of: weight)
        precondition(
            destination.shape.count == shape.count, "\(weight) is \(shape), the destination \(destination.shape)")
        let parts = try parts(of: weight)
        for (part, tensor) in parts {
            let dtype = try tensor.floatDType(), columns = part.columnCount
            let table = destination.reshaped([shape.count / columns, columns])
            if part.isTransposed {
                let matrixRows = part.matrixRowCount
                forEachTransposedMatrix(tensor, part) { matrix, bytes in
                    let first = part.firstRow + matrix * matrixRows
                    backend.upload(bytes, as: dtype, into: table.rows(first..<first + matrixRows))
                }
            } else {
                // In pieces, so that no more than one of them is in memory twice.
                for rows in Checkpoint.pieces(of: part) {
                    let first = rows.lowerBound - part.firstRow
                    withAlignedBytes(tensor, dtype, first * columns..<(first + rows.count) * columns) {
                        backend.upload($0, as: dtype, into: table.rows(rows))
                    }
                    tensor.releasePages()
                }
            }
            tensor.releasePages()
        }
        // The backend looks faster than the host; the host then finds the name.
        guard checksValues else { return }
        if destination.dtype == .float16 { try requireDigits(parts) }
        guard !backend.isFinite(destination) else { return }
        if let (_, tensor) = parts.first(where: \.tensor.hasNonFinite) { throw nonFinite(tensor) }
        throw MartletError(
            "a weight is too large to compute with", in: parts.first.map(\.tensor.location),
            because: "it is finite in its file, and not in \(backend.computeDType.rawValue)",
            fix: "train with 'device: cpu', which computes in float32, or look for what is wrong with the model")
    }

    /// What is too small for float16 as a whole is not a weight that some numbers of vanish in.
    private func requireDigits(_ parts: [(part: WeightPart, tensor: HostTensor)]) throws(MartletError) {
        for (_, tensor) in parts where tensor.dtype != .float16 {
            let largest = try tensor.largestMagnitude()
            guard largest > 0, largest < 0x1p-14 else { continue }
            throw MartletError(
                "a weight is too small to compute with", in: tensor.location,
                because: "the largest of it is \(largest), where float16 has lost digits already",
                fix: "train with 'device: cpu', which computes in float32, or look for what is wrong with the model")
        }
    }

    /// The weight as float32, row-major.
    package func readFloats(_ weight: Weight) throws(MartletError) -> [Float] {
        let shape = configuration.shape(of: weight)
        return try readFloats(weight, rows: 0..<shape.count / shape[-1])
    }

    /// Rows of the weight viewed as [all rows, last extent], as float32; a part of a weight that may not fit in memory whole.
    package func readFloats(_ weight: Weight, rows: Range<Int>) throws(MartletError) -> [Float] {
        try readFloats(try parts(of: weight), rows: rows)
    }

    /// The same from the weight's parts, for callers that read one weight in many pieces.
    package func readFloats(
        _ parts: [(part: WeightPart, tensor: HostTensor)], rows: Range<Int>
    ) throws(MartletError) -> [Float] {
        let columns = parts.first?.part.columnCount ?? 0
        var floats = [Float](repeating: 0, count: rows.count * columns)
        for (part, tensor) in parts {
            let wanted = rows.clamped(to: part.rows), dtype = try tensor.floatDType()
            guard !wanted.isEmpty else { continue }
            let first = wanted.lowerBound - part.firstRow
            floats.withUnsafeMutableBufferPointer { buffer in
                let start = (wanted.lowerBound - rows.lowerBound) * columns
                let destination = UnsafeMutableBufferPointer(rebasing: buffer[start..<start + wanted.count * columns])
                if part.isTransposed {
                    gatherRows(tensor, part, dtype, first..<first + wanted.count, into: destination)
                } else {
                    let rowBytes = columns * dtype.byteCount
                    tensor.withBytes {
                        let bytes = $0[first * rowBytes..<(first + wanted.count) * rowBytes]
                        convertToFloat(UnsafeRawBufferPointer(rebasing: bytes), as: dtype, into: destination)
                    }
                }
            }
        }
        return floats
    }

    /// The stored tensors that hold a value that is infinite or not a number. Reads everything.
    package var nonFiniteTensors: [String] { tensors.tensors.filter(\.hasNonFinite).map(\.name) }
}

private func nonFinite(_ tensor: HostTensor) -> MartletError {
    MartletError(
        "a weight is not a number", in: tensor.location,
        because: "it holds NaN or infinity; training cannot start from that",
        fix: "download or save the model again; if it was trained, an earlier checkpoint may be sound")
}

/// Bytes of some elements of the tensor at an address that suits its dtype: a copy where the file laid it out otherwise.
private func withAlignedBytes(
    _ tensor: HostTensor, _ dtype: DType, _ elements: Range<Int>, _ body: (UnsafeRawBufferPointer) -> Void
) {
    let size = dtype.byteCount
    tensor.withBytes { bytes in
        let bytes = UnsafeRawBufferPointer(
            rebasing: bytes[elements.lowerBound * size..<elements.upperBound * size])
        guard UInt(bitPattern: bytes.baseAddress) % UInt(dtype.byteCount) != 0 else { return body(bytes) }
        let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 64)
        defer { copy.deallocate() }
        copy.copyMemory(from: bytes)
        body(UnsafeRawBufferPointer(copy))
    }
}

/// Calls `body` with each matrix of a stack [n, columns, rows], turned into [rows, columns].
private func forEachTransposedMatrix(
    _ tensor: HostTensor, _ part: WeightPart, _ body: (Int, UnsafeRawBufferPointer) -> Void
) {
    let rows = part.matrixRowCount, columns = part.columnCount
    let size = tensor.byteCount / max(tensor.count, 1), matrixBytes = rows * columns * size
    let turned = UnsafeMutableRawBufferPointer.allocate(byteCount: matrixBytes, alignment: 64)
    defer { turned.deallocate() }
    tensor.withBytes { bytes in
        for matrix in 0..<part.rowCount / rows {
            let source = UnsafeRawBufferPointer(rebasing: bytes[matrix * matrixBytes..<(matrix + 1) * matrixBytes])
            if size == 2 {
                transpose(source, into: turned, rows: rows, columns: columns, of: UInt16.self)
            } else {
                transpose(source, into: turned, rows: rows, columns: columns, of: UInt32.self)
            }
            body(matrix, UnsafeRawBufferPointer(turned))
        }
    }
}

/// [columns, rows] into [rows, columns], in square blocks that fit the first cache.
private func transpose<Bits: BitwiseCopyable>(
    _ source: UnsafeRawBufferPointer, into destination: UnsafeMutableRawBufferPointer, rows: Int, columns: Int,
    of: Bits.Type
) {
    let size = MemoryLayout<Bits>.size, block = 32
    for rowBlock in stride(from: 0, to: rows, by: block) {
        for columnBlock in stride(from: 0, to: columns, by: block) {
            for row in rowBlock..<min(rowBlock + block, rows) {
                for column in columnBlock..<min(columnBlock + block, columns) {
                    let bits = source.loadUnaligned(fromByteOffset: (column * rows + row) * size, as: Bits.self)
                    destination.storeBytes(of: bits, toByteOffset: (row * columns + column) * size, as: Bits.self)
                }
            }
        }
    }
}

/// Rows of a stack [n, columns, rows], counted over the whole stack, as float32.
private func gatherRows(
    _ tensor: HostTensor, _ part: WeightPart, _ dtype: DType, _ wanted: Range<Int>,
    into destination: UnsafeMutableBufferPointer<Float>
) {
    let rows = part.matrixRowCount, columns = part.columnCount, size = dtype.byteCount
    let line = UnsafeMutableRawBufferPointer.allocate(byteCount: columns * size, alignment: 64)
    defer { line.deallocate() }
    tensor.withBytes { bytes in
        for (i, row) in wanted.enumerated() {
            let start = row / rows * rows * columns + row % rows
            for column in 0..<columns {
                let element = (start + column * rows) * size
                UnsafeMutableRawBufferPointer(rebasing: line[column * size..<(column + 1) * size])
                    .copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[element..<element + size]))
            }
            let target = UnsafeMutableBufferPointer(rebasing: destination[i * columns..<(i + 1) * columns])
            convertToFloat(UnsafeRawBufferPointer(line), as: dtype, into: target)
        }
    }
}
