internal import MartletCore

/// A graph with the engine that cuDNN's heuristics name first, compiled.
final class CuDNNPlan {
    let workspaceByteCount: Int
    private let cudnn: CuDNN
    private let plan: CuDNNDescriptor
    private let graph: CuDNNDescriptor
    private let constants: [(id: Int, bits: UInt32)]
    /// A constant every 16 bytes.
    private let constantMemory: UnsafeMutableRawPointer

    init(_ cudnn: CuDNN, _ graph: CuDNNGraph) throws(MartletError) {
        self.cudnn = cudnn
        self.graph = try graph.finished()
        plan = try CuDNNPlan.bestPlan(cudnn, self.graph)
        workspaceByteCount = try plan.integer(.planWorkspaceSize)
        constants = graph.constants
        constantMemory = .allocate(byteCount: 16 * max(constants.count, 1), alignment: 16)
        for (i, constant) in constants.enumerated() {
            constantMemory.storeBytes(of: constant.bits, toByteOffset: 16 * i, as: UInt32.self)
        }
    }

    deinit { constantMemory.deallocate() }

    /// The first of the heuristics' choices that compiles.
    private static func bestPlan(_ cudnn: CuDNN, _ graph: CuDNNDescriptor) throws(MartletError) -> CuDNNDescriptor {
        let modeA: Int32 = 3
        let heuristics = try CuDNNDescriptor(
            .heuristics, cudnn, [(.heuristicsGraph, .descriptor(graph)), (.heuristicsMode, .heuristics(modeA))])
        var refusal = MartletError("\(cudnn.version) has no engine for this graph")
        for choice in try heuristics.descriptors(.heuristicsResults, .engineConfiguration) {
            do throws(MartletError) {
                return try CuDNNDescriptor(
                    .executionPlan, cudnn,
                    [(.planHandle, .handle(cudnn.handle)), (.planConfiguration, .descriptor(choice))])
            } catch {
                refusal = error
            }
        }
        throw refusal
    }

    /// Queues a run on the device's stream.
    func run(_ bound: [(id: Int, address: UInt)], workspace: UInt) throws(MartletError) {
        let constantBase = UInt(bitPattern: constantMemory)
        let ids = bound.map(\.id) + constants.map(\.id)
        let addresses = bound.map(\.address) + constants.indices.map { constantBase + UInt(16 * $0) }
        let pack = try CuDNNDescriptor(
            .variantPack, cudnn,
            [
                (.packUniqueIDs, .integers(ids)), (.packPointers, .addresses(addresses)),
                (.packWorkspace, .addresses([workspace])),
            ])
        try cudnn.check(cudnn.functions.execute(cudnn.handle, plan.pointer, pack.pointer), "a run of attention")
    }
}
