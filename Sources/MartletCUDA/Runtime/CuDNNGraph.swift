internal import MartletCore

/// An operation graph of cuDNN while it is put together. Every tensor has four extents, [B, heads, rows, columns].
/// Tensors that a caller binds have an id of the caller's choice, below 100.
final class CuDNNGraph {
    /// A tensor of the graph.
    struct Node {
        let descriptor: CuDNNDescriptor
        let sizes: [Int]
        let strides: [Int]
    }

    /// cudnnPointwiseMode_t
    enum Pointwise: Int32 {
        case add = 0
        case multiply = 1
        case divide = 6
        case subtract = 9
        case exponential = 13
        case logarithm = 15
        case identity = 21
        case atLeast = 303
        case lessThan = 304
        case and = 400
        case index = 501
        case select = 601
    }

    /// cudnnReduceTensorOp_t
    enum Reduction: Int32 {
        case sum = 0
        case maximum = 3
    }

    private let cudnn: CuDNN
    private var operations: [CuDNNDescriptor] = []
    /// Constants lie on the host; a run is given their addresses.
    private(set) var constants: [(id: Int, bits: UInt32)] = []
    private var nextID = 100

    init(_ cudnn: CuDNN) { self.cudnn = cudnn }

    // MARK: Tensors

    /// A tensor in device memory, bound when the graph runs. With `offsets`, sequence b begins at element offsets[b].
    func bound(
        _ id: Int, _ sizes: [Int], _ strides: [Int]? = nil, _ type: CuDNNDescriptor.DataType, offsets: Node? = nil,
        alignment: Int = 16
    ) throws(MartletError) -> Node {
        try node(id, sizes, strides, type, [], offsets, alignment: alignment)
    }

    /// A tensor that the graph alone knows.
    func inner(
        _ sizes: [Int], _ strides: [Int]? = nil, _ type: CuDNNDescriptor.DataType = .float32, offsets: Node? = nil
    ) throws(MartletError) -> Node {
        try node(newID(), sizes, strides, type, [(.tensorIsVirtual, .flag(true))], offsets)
    }

    func constant(_ value: Float) throws(MartletError) -> Node { try constant(value.bitPattern, .float32) }
    func constant(_ value: Int) throws(MartletError) -> Node {
        try constant(UInt32(bitPattern: Int32(value)), .int32)
    }

    private func constant(_ bits: UInt32, _ type: CuDNNDescriptor.DataType) throws(MartletError) -> Node {
        let id = newID()
        constants.append((id, bits))
        return try node(id, [1, 1, 1, 1], nil, type, [(.tensorIsByValue, .flag(true))])
    }

    private func newID() -> Int {
        nextID += 1
        return nextID
    }

    private func node(
        _ id: Int, _ sizes: [Int], _ strides: [Int]?, _ type: CuDNNDescriptor.DataType,
        _ kind: CuDNNDescriptor.Attributes, _ offsets: Node? = nil, alignment: Int = 16
    ) throws(MartletError) -> Node {
        let strides = strides ?? [sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1]
        let descriptor = try CuDNNDescriptor(
            .tensor, cudnn,
            [
                (.tensorType, .dataType(type)), (.tensorDimensions, .integers(sizes)),
                (.tensorStrides, .integers(strides)), (.tensorUniqueID, .integer(id)),
                (.tensorAlignment, .integer(alignment)),
            ] + kind + attributes([(.tensorRaggedOffset, offsets)]))
        return Node(descriptor: descriptor, sizes: sizes, strides: strides)
    }

    // MARK: Operations

    /// y = mode(x, b), or of `select`: y = t ? x : b. Without `into`, y is like x.
    @discardableResult
    func pointwise(
        _ mode: Pointwise, _ x: Node, _ b: Node? = nil, where t: Node? = nil, into: Node? = nil,
        as type: CuDNNDescriptor.DataType = .float32, computing: CuDNNDescriptor.DataType = .float32, axis: Int? = nil
    ) throws(MartletError) -> Node {
        let y: Node
        if let into { y = into } else { y = try inner(x.sizes, x.strides, type) }
        let how: CuDNNDescriptor.Attributes = [
            (.pointwiseMode, .pointwise(mode.rawValue)), (.pointwiseComputeType, .dataType(computing)),
        ]
        try operate(
            .pointwiseOperation, .pointwiseDescriptor, .pointwise,
            how + (axis.map { [(.pointwiseAxis, .integer($0))] } ?? []),
            [(.pointwiseX, x), (.pointwiseY, y), (.pointwiseB, b), (.pointwiseT, t)])
        return y
    }

    /// c = a b, of at most `rows`, `columns`, `inner` in each sequence.
    @discardableResult
    func product(
        _ a: Node, _ b: Node, into c: Node, rows: Node? = nil, columns: Node? = nil, inner: Node? = nil
    ) throws(MartletError) -> Node {
        try operate(
            .matmulOperation, .matmulDescriptor, .matmul, [(.matmulComputeType, .dataType(.float32))],
            [
                (.matmulA, a), (.matmulB, b), (.matmulC, c), (.matmulRows, rows), (.matmulColumns, columns),
                (.matmulInner, inner),
            ])
        return c
    }

    /// Over the extents in which y is smaller.
    @discardableResult
    func reduce(_ mode: Reduction, _ x: Node, into y: Node) throws(MartletError) -> Node {
        try operate(
            .reductionOperation, .reductionDescriptor, .reduction,
            [(.reductionComputeType, .dataType(.float32)), (.reductionOperator, .reduction(mode.rawValue))],
            [(.reductionX, x), (.reductionY, y)])
        return y
    }

    /// The same elements seen with y's extents and strides.
    func view(_ x: Node, as y: Node) throws(MartletError) -> Node {
        operations.append(
            try CuDNNDescriptor(.reshapeOperation, cudnn, attributes([(.reshapeX, x), (.reshapeY, y)])))
        return y
    }

    /// Appends an operation: a descriptor of `how`, under `name`, and its operands.
    private func operate(
        _ operation: CuDNNDescriptor.Kind, _ name: CuDNNDescriptor.Name, _ kind: CuDNNDescriptor.Kind,
        _ how: CuDNNDescriptor.Attributes, _ operands: [(CuDNNDescriptor.Name, Node?)]
    ) throws(MartletError) {
        let how = try CuDNNDescriptor(kind, cudnn, how)
        operations.append(
            try CuDNNDescriptor(operation, cudnn, [(name, .descriptor(how))] + attributes(operands)))
    }

    /// Those that are there.
    private func attributes(_ nodes: [(CuDNNDescriptor.Name, Node?)]) -> CuDNNDescriptor.Attributes {
        nodes.compactMap { name, node in node.map { (name, .descriptor($0.descriptor)) } }
    }

    func finished() throws(MartletError) -> CuDNNDescriptor {
        try CuDNNDescriptor(
            .operationGraph, cudnn,
            [(.graphHandle, .handle(cudnn.handle)), (.graphOperations, .descriptors(operations))])
    }
}
