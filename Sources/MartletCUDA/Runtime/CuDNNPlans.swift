internal import Dispatch
internal import MartletCore

/// The plans of attention. Those that a run is sure to need are built while weights are read, so everything here happens
/// on a queue of its own, one thing after the other.
final class CuDNNPlans: @unchecked Sendable {
    private let cudnn: CuDNN
    private let device: Device
    private let queue = DispatchQueue(label: "cuDNN")
    /// nil where cuDNN has none.
    private var plans: [CuDNNAttentionGraph: CuDNNPlan?] = [:]
    private var firstRefusal: MartletError?

    init(_ cudnn: CuDNN, _ device: Device) { (self.cudnn, self.device) = (cudnn, device) }

    /// Why there was first none.
    var refusal: MartletError? { queue.sync { firstRefusal } }

    /// Waits for what was begun.
    func finish() { queue.sync {} }

    /// Begins to build.
    func begin(_ graphs: [CuDNNAttentionGraph]) {
        for graph in graphs { queue.async { _ = self.find(graph) } }
    }

    /// nil where cuDNN has none.
    func plan(_ graph: CuDNNAttentionGraph) -> CuDNNPlan? { queue.sync { find(graph) } }

    private func find(_ graph: CuDNNAttentionGraph) -> CuDNNPlan? {
        if let plan = plans[graph] { return plan }
        device.makeCurrent()
        do throws(MartletError) {
            let plan = try graph.plan(cudnn)
            guard !graph.isBackward || plan.workspaceByteCount <= graph.workspaceByteCount else {
                throw MartletError(
                    "\(cudnn.version) is not used", in: "attention's backward pass",
                    because: "it wants \(plan.workspaceByteCount) bytes where \(graph.workspaceByteCount) were planned",
                    fix: "install 9.14 to 9.19, or report this")
            }
            plans[graph] = plan
            return plan
        } catch {
            firstRefusal = firstRefusal ?? error
            plans[graph] = .some(nil)
            return nil
        }
    }
}
