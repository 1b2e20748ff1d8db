/// Up to four extents, outermost first, kept inline so that a view costs nothing.
package struct Shape: Equatable, Sendable, ExpressibleByArrayLiteral, CustomStringConvertible {
    package var rank: Int
    private var extents: SIMD4<Int>

    package init(_ extents: [Int]) {
        precondition(extents.count <= 4, "a shape has at most 4 extents, not \(extents)")
        rank = extents.count
        self.extents = SIMD4(repeating: 1)
        for (i, extent) in extents.enumerated() { self.extents[i] = extent }
    }

    package init(arrayLiteral elements: Int...) { self.init(elements) }

    package subscript(axis: Int) -> Int { extents[axis < 0 ? rank + axis : axis] }
    package var count: Int { extents[0] * extents[1] * extents[2] * extents[3] }
    package var array: [Int] { (0..<rank).map { extents[$0] } }
    package var description: String { "[" + array.map(String.init).joined(separator: ", ") + "]" }
}

/// A typed view of memory that an `Arena` (or a mapped file) owns: an address, a dtype, a row-major shape.
///
/// The address belongs to the backend's memory: host memory on the CPU, device memory on a GPU. A tensor never
/// owns, never allocates, and is as cheap to copy as a pointer.
package struct Tensor: Sendable {
    package var address: UInt
    package var dtype: DType
    package var shape: Shape

    package init(address: UInt, dtype: DType, shape: Shape) {
        self.address = address
        self.dtype = dtype
        self.shape = shape
    }

    package var count: Int { shape.count }
    package var byteCount: Int { shape.count * dtype.byteCount }

    /// Rows `range` of the outermost axis.
    package func rows(_ range: Range<Int>) -> Tensor {
        precondition(range.lowerBound >= 0 && range.upperBound <= shape[0], "rows \(range) of \(shape)")
        let stride = shape.count / max(shape[0], 1)
        var extents = shape.array
        extents[0] = range.count
        return Tensor(
            address: address + UInt(range.lowerBound * stride * dtype.byteCount), dtype: dtype, shape: Shape(extents))
    }

    /// Element `index` of the outermost axis, that axis dropped.
    package subscript(index: Int) -> Tensor {
        rows(index..<(index + 1)).reshaped(Shape(Array(shape.array.dropFirst())))
    }

    /// The same memory under another shape; a smaller count keeps the front.
    package func reshaped(_ shape: Shape) -> Tensor {
        precondition(shape.count <= count, "cannot view \(self.shape) as \(shape)")
        return Tensor(address: address, dtype: dtype, shape: shape)
    }
}
