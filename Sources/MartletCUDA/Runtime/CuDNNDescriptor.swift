internal import MartletCore

/// A finalized descriptor of cuDNN's backend API. It keeps the descriptors that it names.
final class CuDNNDescriptor {
    /// cudnnBackendDescriptorType_t
    enum Kind: Int32 {
        case pointwise = 0
        case engineConfiguration = 3
        case heuristics = 4
        case executionPlan = 5
        case pointwiseOperation = 13
        case operationGraph = 15
        case variantPack = 16
        case tensor = 17
        case matmul = 18
        case matmulOperation = 19
        case reduction = 21
        case reductionOperation = 22
        case reshapeOperation = 31
    }

    /// cudnnBackendAttributeName_t
    enum Name: Int32 {
        case pointwiseMode = 0
        case pointwiseComputeType = 1
        case pointwiseAxis = 9
        case heuristicsMode = 200
        case heuristicsGraph = 201
        case heuristicsResults = 202
        case planHandle = 400
        case planConfiguration = 401
        case planWorkspaceSize = 402
        case pointwiseDescriptor = 750
        case pointwiseX = 751
        case pointwiseB = 752
        case pointwiseY = 753
        case pointwiseT = 758
        case graphHandle = 800
        case graphOperations = 801
        case tensorAlignment = 900
        case tensorType = 901
        case tensorDimensions = 902
        case tensorStrides = 903
        case tensorUniqueID = 906
        case tensorIsVirtual = 907
        case tensorIsByValue = 908
        case tensorRaggedOffset = 913
        case packUniqueIDs = 1000
        case packPointers = 1001
        case packWorkspace = 1003
        case matmulComputeType = 1500
        case matmulA = 1520
        case matmulB = 1521
        case matmulC = 1522
        case matmulDescriptor = 1523
        case matmulRows = 1525
        case matmulColumns = 1526
        case matmulInner = 1527
        case reductionOperator = 1600
        case reductionComputeType = 1601
        case reductionX = 1610
        case reductionY = 1611
        case reductionDescriptor = 1612
        case reshapeX = 2200
        case reshapeY = 2201
    }

    /// cudnnDataType_t
    enum DataType: Int32 {
        case float32 = 0
        case int32 = 4
        case bfloat16 = 9
        case int64 = 10
        case boolean = 11
    }

    /// A value with its cudnnBackendAttributeType_t.
    enum Value {
        case handle(CuDNN.Pointer)
        case dataType(DataType)
        case flag(Bool)
        case integers([Int])
        case addresses([UInt])
        case heuristics(Int32)
        case pointwise(Int32)
        case descriptors([CuDNNDescriptor])
        case reduction(Int32)

        static func descriptor(_ descriptor: CuDNNDescriptor) -> Value { .descriptors([descriptor]) }
        static func integer(_ integer: Int) -> Value { .integers([integer]) }
    }

    typealias Attributes = [(Name, Value)]

    let pointer: CuDNN.Pointer
    private let cudnn: CuDNN
    private var kept: [CuDNNDescriptor] = []

    /// Not finalized: for cuDNN to fill in.
    init(empty kind: Kind, _ cudnn: CuDNN) throws(MartletError) {
        self.cudnn = cudnn
        var pointer: CuDNN.Pointer = nil
        try cudnn.check(cudnn.functions.createDescriptor(kind.rawValue, &pointer), "a descriptor of kind \(kind)")
        self.pointer = pointer
    }

    convenience init(_ kind: Kind, _ cudnn: CuDNN, _ attributes: Attributes) throws(MartletError) {
        try self.init(empty: kind, cudnn)
        for (name, value) in attributes { try cudnn.check(set(name, value), "\(kind).\(name) = \(value)") }
        try cudnn.check(cudnn.functions.finalize(pointer), "\(kind)")
    }

    deinit { _ = cudnn.functions.destroyDescriptor(pointer) }

    private func set(_ name: Name, _ value: Value) -> Int32 {
        switch value {
        case .handle(let handle): return set(name, 0, [handle])
        case .dataType(let type): return set(name, 1, [type.rawValue])
        case .flag(let flag): return set(name, 2, [flag])
        case .integers(let integers): return set(name, 3, integers)
        case .addresses(let addresses): return set(name, 6, addresses)
        case .heuristics(let mode): return set(name, 8, [mode])
        case .pointwise(let mode): return set(name, 14, [mode])
        case .reduction(let mode): return set(name, 18, [mode])
        case .descriptors(let descriptors):
            kept += descriptors
            return set(name, 15, descriptors.map(\.pointer))
        }
    }

    private func set<Element>(_ name: Name, _ type: Int32, _ values: [Element]) -> Int32 {
        values.withUnsafeBytes {
            cudnn.functions.setAttribute(pointer, name.rawValue, type, Int64(values.count), $0.baseAddress)
        }
    }

    func integer(_ name: Name) throws(MartletError) -> Int {
        var value: Int64 = 0, count: Int64 = 0
        try cudnn.check(cudnn.functions.getAttribute(pointer, name.rawValue, 3, 1, &count, &value), "\(name)")
        return Int(value)
    }

    /// The descriptors under `name`, of `kind`.
    func descriptors(_ name: Name, _ kind: Kind) throws(MartletError) -> [CuDNNDescriptor] {
        var count: Int64 = 0
        try cudnn.check(cudnn.functions.getAttribute(pointer, name.rawValue, 15, 0, &count, nil), "\(name)")
        var found: [CuDNNDescriptor] = []
        for _ in 0..<count { found.append(try CuDNNDescriptor(empty: kind, cudnn)) }
        var pointers = found.map(\.pointer)
        try cudnn.check(
            cudnn.functions.getAttribute(pointer, name.rawValue, 15, count, &count, &pointers), "\(name)")
        return Array(found.prefix(Int(count)))
    }
}
