package import MartletCore

/// The inverse of the routing's order, which `routing_order` writes along with it.
struct RouterScratch {
    let position_R: Tensor

    init(_ scratch: inout Scratch, rows: Int) { position_R = scratch.take([rows], .int32) }
}

extension CUDABackend {
    package func route(_ logits_TE: Tensor, _ options: RouterOptions, into routing: Routing) {
        let T = logits_TE.shape[0], E = logits_TE.shape[1], R = T * options.expertsPerToken
        precondition(routing.probability_TE.count == T * E && routing.expert_TK.count == R)
        precondition(logits_TE.dtype == computeDType && routing.weight_TK.dtype == .float32)
        precondition(routing.offset_E1.count == E + 1 && routing.order_R.count == R)
        var layout = scratch()
        let position_R = RouterScratch(&layout, rows: R).position_R
        device.timed("route") {
            device.launch(
                routerKernel("route", E, options), Grid(ceilDiv(T, 8)), block: 256,
                [
                    .tensor(logits_TE), .tensor(routing.probability_TE), .tensor(routing.logSumExp_T),
                    .tensor(routing.expert_TK), .tensor(routing.weight_TK), .int(T),
                    .int(options.normalizesTopK ? 1 : 0),
                ])
            device.launch(
                device.kernel("routing.cu", "routing_order", [KernelDefine("EXPERTS", E)]), Grid(E), block: 1024,
                [
                    .tensor(routing.expert_TK), .tensor(routing.order_R), .tensor(position_R),
                    .tensor(routing.offset_E1), .int(R),
                ])
        }
    }

    package func routeBackward(
        _ routing: Routing, _ options: RouterOptions, _ dweight_TK: Tensor, _ auxiliary: RouterAuxiliary?,
        into dlogits_TE: Tensor
    ) {
        let T = dlogits_TE.shape[0], E = dlogits_TE.shape[1]
        precondition(routing.probability_TE.count == T * E && dweight_TK.count == T * options.expertsPerToken)
        precondition(dlogits_TE.dtype == computeDType && dweight_TK.dtype == .float32)
        device.timed("routeBackward") {
            device.launch(
                routerKernel("route_backward", E, options), Grid(ceilDiv(T, 8)), block: 256,
                [
                    .tensor(routing.probability_TE), .tensor(routing.logSumExp_T), .tensor(routing.expert_TK),
                    .tensor(routing.weight_TK), .tensor(dweight_TK), .optional(auxiliary?.dprobability_E),
                    .float(auxiliary?.zScale ?? 0), .tensor(dlogits_TE), .int(T), .int(options.normalizesTopK ? 1 : 0),
                ])
        }
    }

    private func routerKernel(_ entry: String, _ experts: Int, _ options: RouterOptions) -> Kernel? {
        let chosen = options.expertsPerToken
        precondition(chosen >= 1 && chosen <= min(experts, 32) && experts <= 1024, "\(chosen) of \(experts) experts")
        return device.kernel(
            "router.cu", entry, [KernelDefine("EXPERTS", experts), KernelDefine("TOP_K", chosen), half])
    }
}
