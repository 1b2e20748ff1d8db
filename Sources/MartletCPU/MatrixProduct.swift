internal import CMartletVectors
internal import MartletCore

/// A row-major matrix as an operand: its memory, its leading dimension, and whether it is read transposed.
struct Operand {
    var start: Floats
    var stride: Int
    var isTransposed = false

    init(_ start: Floats, _ stride: Int) {
        self.start = start
        self.stride = stride
    }

    var transposed: Operand {
        var copy = self
        copy.isTransposed.toggle()
        return copy
    }
}

/// The matrix product that everything heavy goes through, on the calling thread.
struct MatrixProduct: Sendable {
    private let level: Int32
    private let sgemm: OpenBLAS.SGEMM?

    init(_ arithmetic: Arithmetic) {
        level = arithmetic.level
        sgemm = arithmetic == .openBLAS ? OpenBLAS.shared?.sgemm : nil
    }

    /// C = alpha A B, or C += alpha A B where `adds`; A is m x k and B is k x n as read, C is m x n row-major.
    func callAsFunction(
        _ m: Int, _ n: Int, _ k: Int, _ a: Operand, _ b: Operand, into c: Floats, _ stride: Int, alpha: Float = 1,
        adds: Bool = false
    ) {
        guard m > 0, n > 0 else { return }
        guard k > 0, level > 0 || sgemm != nil else {
            return ownProduct(m, n, k, a, b, into: c, stride, alpha: alpha, adds: adds)
        }
        guard let sgemm else {
            return martletProduct(
                level, Int32(m), Int32(n), Int32(k), MartletOperand(a), MartletOperand(b), c, stride, alpha, adds)
        }
        let rowMajor: Int32 = 101
        sgemm(
            rowMajor, a.isTransposed ? 112 : 111, b.isTransposed ? 112 : 111, Int32(m), Int32(n), Int32(k), alpha,
            a.start, Int32(a.stride), b.start, Int32(b.stride), adds ? 1 : 0, c, Int32(stride))
    }
}

/// A k x n operand that several products read: packed in memory of `count(k, n)` floats where packing is worth it.
struct PackedOperand {
    fileprivate let operand: Operand
    fileprivate let packed: MartletPacked

    static func count(_ k: Int, _ n: Int) -> Int { k * roundUp(n, to: 16) }
}

extension MatrixProduct {
    func pack(_ b: Operand, _ k: Int, _ n: Int, into memory: Floats) -> PackedOperand {
        if level > 0 { martletPack(level, Int32(n), Int32(k), MartletOperand(b), memory) }
        return PackedOperand(
            operand: b, packed: MartletPacked(start: memory, rows: Int32(k), columns: Int32(n)))
    }

    /// The product with the first k rows and n columns of a packed B.
    func callAsFunction(
        _ m: Int, _ n: Int, _ k: Int, _ a: Operand, _ b: PackedOperand, into c: Floats, _ stride: Int,
        adds: Bool = false
    ) {
        guard level > 0, m > 0, n > 0, k > 0 else { return self(m, n, k, a, b.operand, into: c, stride, adds: adds) }
        martletProductPacked(
            level, Int32(m), Int32(n), Int32(k), MartletOperand(a), b.packed, c, stride, 1, adds)
    }
}

extension MartletOperand {
    fileprivate init(_ operand: Operand) {
        self.init(start: operand.start, stride: operand.stride, isTransposed: operand.isTransposed)
    }
}
