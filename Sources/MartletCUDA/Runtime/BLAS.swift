internal import Dispatch
internal import MartletCore

/// A row-major matrix as an operand: [rows, columns] as stored, read transposed if so said.
struct Operand {
    var tensor: Tensor
    var isTransposed = false

    init(_ tensor: Tensor) { self.tensor = tensor }

    var transposed: Operand {
        var copy = self
        copy.isTransposed.toggle()
        return copy
    }
    var rows: Int { tensor.shape[0] }
    var columns: Int { tensor.shape[1] }
    /// Of the matrix as it is read.
    var rowStride: Int { isTransposed ? 1 : columns }
    var columnStride: Int { isTransposed ? columns : 1 }
}

/// cuBLASLt: the dense matrix products. Each shape's algorithm is the first that the library's heuristics name, asked for
/// token counts in steps of 64: packed steps differ in theirs, and an answer takes the host 0.15 ms while the GPU waits. Sums
/// over K are in a fixed order (reductions of split K go through the workspace).
final class BLAS: @unchecked Sendable {
    private typealias Handle = OpaquePointer?
    private let device: Device
    private let functions: Functions
    private var handle: Handle = nil
    private var plans: [PlanKey: Plan] = [:]
    private var workspace: Tensor?
    private let queue = DispatchQueue(label: "cuBLASLt")
    private let isUsed: Bool
    let version: String

    static let workspaceByteCount = 64 << 20

    private struct PlanKey: Hashable {
        var m, n, k: Int
        var transposesA, transposesB: Bool
        var input, output: DType
        var alignment: [Int]

        /// The shape whose algorithm this one takes. Narrow extents are ranks and heads: those are met as they are.
        var rounded: PlanKey {
            var key = self
            for extent in [\PlanKey.m, \.n, \.k] where key[keyPath: extent] > 256 {
                key[keyPath: extent] = roundUp(key[keyPath: extent], to: 64)
            }
            return key
        }
    }

    private struct Plan {
        typealias Algorithm = (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)
        var operation, a, b, c: Handle
        var algorithm: Algorithm
    }

    /// cublasLtMatmulHeuristicResult_t
    private struct HeuristicResult {
        var algorithm: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0, 0, 0, 0)
        var workspaceSize = 0
        var state: Int32 = 0
        var waves: Float = 0
        var reserved: (Int32, Int32, Int32, Int32) = (0, 0, 0, 0)
    }

    private struct Functions {
        let create: @convention(c) (UnsafeMutablePointer<Handle>) -> Int32
        let getVersion: @convention(c) () -> Int
        let operationCreate: @convention(c) (UnsafeMutablePointer<Handle>, Int32, Int32) -> Int32
        let operationSet: @convention(c) (Handle, Int32, UnsafeRawPointer, Int) -> Int32
        let layoutCreate: @convention(c) (UnsafeMutablePointer<Handle>, Int32, UInt64, UInt64, Int64) -> Int32
        let preferenceCreate: @convention(c) (UnsafeMutablePointer<Handle>) -> Int32
        let preferenceSet: @convention(c) (Handle, Int32, UnsafeRawPointer, Int) -> Int32
        let preferenceDestroy: @convention(c) (Handle) -> Int32
        let heuristic:
            @convention(c) (
                Handle, Handle, Handle, Handle, Handle, Handle, Handle, Int32, UnsafeMutableRawPointer,
                UnsafeMutablePointer<Int32>
            ) -> Int32
        let checkAlgorithm:
            @convention(c) (
                Handle, Handle, Handle, Handle, Handle, Handle, UnsafeRawPointer, UnsafeMutableRawPointer
            ) -> Int32
        let matmul:
            @convention(c) (
                Handle, Handle, UnsafeRawPointer, UInt, Handle, UInt, Handle, UnsafeRawPointer, UInt, Handle, UInt,
                Handle, UnsafeRawPointer, UInt, Int, Driver.Pointer
            ) -> Int32
    }

    init(_ device: Device, isUsed: Bool) throws(MartletError) {
        self.device = device
        self.isUsed = isUsed
        let library = try DynamicLibrary(
            "cuBLASLt", ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"])
        functions = Functions(
            create: try library.symbol("cublasLtCreate"), getVersion: try library.symbol("cublasLtGetVersion"),
            operationCreate: try library.symbol("cublasLtMatmulDescCreate"),
            operationSet: try library.symbol("cublasLtMatmulDescSetAttribute"),
            layoutCreate: try library.symbol("cublasLtMatrixLayoutCreate"),
            preferenceCreate: try library.symbol("cublasLtMatmulPreferenceCreate"),
            preferenceSet: try library.symbol("cublasLtMatmulPreferenceSetAttribute"),
            preferenceDestroy: try library.symbol("cublasLtMatmulPreferenceDestroy"),
            heuristic: try library.symbol("cublasLtMatmulAlgoGetHeuristic"),
            checkAlgorithm: try library.symbol("cublasLtMatmulAlgoCheck"),
            matmul: try library.symbol("cublasLtMatmul"))
        let number = functions.getVersion()
        version =
            !isUsed ? "plain products" : "cuBLASLt \(number / 10000).\(number / 100 % 100).\(number % 100)"
        let result = functions.create(&handle)
        guard result == 0 else {
            throw MartletError(
                "cuBLASLt does not start", in: library.description, because: "cublasLtCreate gave status \(result)",
                fix: "check that the library's CUDA version is not newer than the driver's (`nvidia-smi`)")
        }
    }

    func reserveWorkspace(in arena: Arena) {
        let memory = arena.carve([BLAS.workspaceByteCount], .uint8, for: .workspace)
        guard !arena.isMeasuring else { return }
        let isFirst = workspace == nil
        // Not while the first question reads it.
        queue.sync { workspace = memory }
        if isFirst { queue.async { self.wake() } }
    }

    /// The library's first answer takes 0.1 s whatever is asked. So it is asked while weights are read, on `queue`: any other
    /// question waits for that.
    private func wake() {
        device.makeCurrent()
        var plan = Plan(operation: nil, a: nil, b: nil, c: nil, algorithm: (0, 0, 0, 0, 0, 0, 0, 0))
        let key = PlanKey(
            m: 1024, n: 1024, k: 1024, transposesA: false, transposesB: true, input: device.architecture.half,
            output: device.architecture.half, alignment: [256, 256, 256])
        if describe(key, &plan) == 0 { _ = chooseAlgorithm(key, &plan) }
    }

    /// C [m, n] = alpha A B, or C += alpha A B where `adds`. A and B are of one dtype; C of that or float32.
    func product(_ a: Operand, _ b: Operand, into c: Tensor, alpha: Float = 1, adds: Bool = false) {
        let (m, k) = a.isTransposed ? (a.columns, a.rows) : (a.rows, a.columns)
        let n = b.isTransposed ? b.rows : b.columns
        precondition(
            k == (b.isTransposed ? b.columns : b.rows) && c.count == m * n && a.tensor.dtype == b.tensor.dtype,
            "product of \(a.tensor.shape) and \(b.tensor.shape) into \(c.shape)")
        guard m > 0, n > 0, k > 0, device.failure == nil else { return }
        if !isUsed { return plainProduct(a, b, into: c, (m, n, k), alpha: alpha, adds: adds) }
        guard !device.isIdle else { return }
        let key = PlanKey(
            m: m, n: n, k: k, transposesA: a.isTransposed, transposesB: b.isTransposed, input: a.tensor.dtype,
            output: c.dtype, alignment: [a.tensor, b.tensor, c].map { min(256, 1 << $0.address.trailingZeroBitCount) })
        guard let plan = plan(key) else { return }
        device.launchCount += 1
        var alpha = alpha, beta: Float = adds ? 1 : 0
        // Row-major A B is column-major B^T A^T: the operands change places.
        device.timedKernel("cuBLASLt \(m) x \(n) x \(k)") {
            let result = withUnsafePointer(to: plan.algorithm) { algorithm in
                functions.matmul(
                    handle, plan.operation, &alpha, b.tensor.address, plan.a, a.tensor.address, plan.b, &beta,
                    c.address, plan.c, c.address, plan.c, algorithm, workspace?.address ?? 0,
                    workspace?.byteCount ?? 0, device.stream)
            }
            check(result, key)
        }
    }

    private func plainProduct(
        _ a: Operand, _ b: Operand, into c: Tensor, _ extents: (m: Int, n: Int, k: Int), alpha: Float, adds: Bool
    ) {
        let kernel = device.kernel(
            "product.cu", "product",
            [
                KernelDefine("HALF", a.tensor.dtype.isHalf ? 1 : 0),
                KernelDefine("PARAMETER_HALF", c.dtype.isHalf ? 1 : 0),
            ])
        device.launch(
            kernel, Grid(ceilDiv(extents.m * extents.n, 256)), block: 256,
            [
                .tensor(a.tensor), .tensor(b.tensor), .tensor(c), .int(extents.m), .int(extents.n), .int(extents.k),
                .int(a.rowStride), .int(a.columnStride), .int(b.rowStride), .int(b.columnStride), .float(alpha),
                .int(adds ? 1 : 0),
            ])
    }

    private func plan(_ key: PlanKey) -> Plan? {
        if let plan = plans[key] { return plan }
        queue.sync {}
        var plan = Plan(operation: nil, a: nil, b: nil, c: nil, algorithm: (0, 0, 0, 0, 0, 0, 0, 0))
        var status = describe(key, &plan)
        let rounded = key.rounded
        if status == 0, rounded != key, let whole = self.plan(rounded), fits(whole.algorithm, plan) {
            plan.algorithm = whole.algorithm
        } else if status == 0 {
            status = chooseAlgorithm(key, &plan)
        }
        check(status, key)
        guard status == 0 else { return nil }
        plans[key] = plan
        return plan
    }

    private func describe(_ key: PlanKey, _ plan: inout Plan) -> Int32 {
        func type(_ dtype: DType) -> Int32 { dtype == .float32 ? 0 : dtype == .bfloat16 ? 14 : 2 }
        let compute32: Int32 = 68, real32: Int32 = 0
        var first: Int32 = key.transposesB ? 1 : 0, second: Int32 = key.transposesA ? 1 : 0
        var results = [functions.operationCreate(&plan.operation, compute32, real32)]
        results.append(functions.operationSet(plan.operation, 3, &first, 4))
        results.append(functions.operationSet(plan.operation, 4, &second, 4))
        // Column-major extents of what is stored.
        let (bRows, bColumns) = key.transposesB ? (key.k, key.n) : (key.n, key.k)
        let (aRows, aColumns) = key.transposesA ? (key.m, key.k) : (key.k, key.m)
        results.append(layout(&plan.a, type(key.input), bRows, bColumns))
        results.append(layout(&plan.b, type(key.input), aRows, aColumns))
        results.append(layout(&plan.c, type(key.output), key.n, key.m))
        return results.first { $0 != 0 } ?? 0
    }

    private func chooseAlgorithm(_ key: PlanKey, _ plan: inout Plan) -> Int32 {
        var preference: Handle = nil, bytes = workspace?.byteCount ?? 0, found: Int32 = 0
        var results = [functions.preferenceCreate(&preference)]
        defer { _ = functions.preferenceDestroy(preference) }
        results.append(functions.preferenceSet(preference, 1, &bytes, 8))
        for (attribute, alignment) in zip([6, 5, 7, 8] as [Int32], key.alignment + [key.alignment[2]]) {
            var value = UInt32(alignment)
            results.append(functions.preferenceSet(preference, attribute, &value, 4))
        }
        var heuristic = HeuristicResult()
        results.append(
            functions.heuristic(
                handle, plan.operation, plan.a, plan.b, plan.c, plan.c, preference, 1, &heuristic, &found))
        plan.algorithm = heuristic.algorithm
        let notSupported: Int32 = 15
        return results.first { $0 != 0 } ?? (found > 0 ? 0 : notSupported)
    }

    private func fits(_ algorithm: Plan.Algorithm, _ plan: Plan) -> Bool {
        var result = HeuristicResult()
        let status = withUnsafePointer(to: algorithm) {
            functions.checkAlgorithm(handle, plan.operation, plan.a, plan.b, plan.c, plan.c, $0, &result)
        }
        return status == 0 && result.state == 0 && result.workspaceSize <= workspace?.byteCount ?? 0
    }

    private func layout(_ layout: inout Handle, _ type: Int32, _ rows: Int, _ columns: Int) -> Int32 {
        functions.layoutCreate(&layout, type, UInt64(rows), UInt64(columns), Int64(rows))
    }

    private func check(_ status: Int32, _ key: PlanKey) {
        guard status != 0 else { return }
        device.fail(
            MartletError(
                "cuBLASLt refuses a matrix product",
                in: "\(key.m) x \(key.n) x \(key.k), \(key.input) to \(key.output)",
                because: "status \(status)", fix: "run `martlet doctor`, and report this with its output"))
    }
}
