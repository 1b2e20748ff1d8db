package import MartletCore

/// What the expert kernels read beside the routing's order, all made in one launch (routing.cu).
struct RoutingTables {
    /// The inverse of the order.
    let position_R: Tensor
    /// Blocks of at most 128 rows of one expert, and parts of at most 192: four numbers each.
    let tiles, parts: Tensor
    /// Behind the tiles' count stands how many are taken.
    let tileCount, partCount: Tensor

    /// Over `memory`, which has `count` int32.
    init(_ memory: Tensor, rows: Int, experts: Int) {
        var start = 0
        let pieces = RoutingTables.counts(rows, experts).map { count in
            defer { start += roundUp(count, to: 4) }
            return memory.rows(start..<start + count)
        }
        (position_R, tiles, parts, tileCount, partCount) = (pieces[0], pieces[1], pieces[2], pieces[3], pieces[4])
    }

    static func count(rows: Int, experts: Int) -> Int {
        counts(rows, experts).reduce(0) { $0 + roundUp($1, to: 4) }
    }

    private static func counts(_ rows: Int, _ experts: Int) -> [Int] {
        [rows, 4 * (rows / 128 + experts), 4 * (rows / 192 + experts), 2, 1]
    }
}

/// Tables that nobody keeps.
struct RouterScratch {
    let tables: Tensor

    init(_ scratch: inout Scratch, rows: Int, experts: Int) {
        tables = scratch.take([RoutingTables.count(rows: rows, experts: experts)], .int32)
    }
}

extension CUDABackend {
    package func route(_ logits_TE: Tensor, _ options: RouterOptions, into routing: Routing) {
        let T = logits_TE.shape[0], E = logits_TE.shape[1], R = T * options.expertsPerToken
        precondition(routing.probability_TE.count == T * E && routing.expert_TK.count == R)
        precondition(logits_TE.dtype == computeDType && routing.weight_TK.dtype == .float32)
        precondition(routing.offset_E1.count == E + 1 && routing.order_R.count == R)
        var layout = scratch()
        let scratch = RouterScratch(&layout, rows: R, experts: E)
        device.timed("route") {
            device.launch(
                routerKernel("route", E, options), Grid(ceilDiv(T, 8)), block: 256,
                [
                    .tensor(logits_TE), .tensor(routing.probability_TE), .tensor(routing.logSumExp_T),
                    .tensor(routing.expert_TK), .tensor(routing.weight_TK), .int(T),
                    .int(options.normalizesTopK ? 1 : 0),
                ])
            order(routing, into: RoutingTables(routing.tables ?? scratch.tables, rows: R, experts: E))
        }
    }

    /// The tables that `route` left, or the same in `place`.
    func tables(of routing: Routing, at place: Tensor) -> RoutingTables {
        let R = routing.order_R.count, E = routing.offset_E1.count - 1
        if let kept = routing.tables { return RoutingTables(kept, rows: R, experts: E) }
        let tables = RoutingTables(place, rows: R, experts: E)
        order(routing, into: tables)
        return tables
    }

    /// The order of the rows by their experts, and the tables.
    private func order(_ routing: Routing, into tables: RoutingTables) {
        let R = routing.order_R.count, E = routing.offset_E1.count - 1
        device.launch(
            device.kernel("routing.cu", "routing", [KernelDefine("EXPERTS", E)]), Grid(max(1, ceilDiv(R, 1024))),
            block: 1024,
            [
                .tensor(routing.expert_TK), .tensor(routing.order_R), .tensor(tables.position_R),
                .tensor(routing.offset_E1), .tensor(tables.tiles), .tensor(tables.tileCount), .tensor(tables.parts),
                .tensor(tables.partCount), .int(R),
            ])
    }

    package func routingTableCount(rows: Int, experts: Int) -> Int {
        experts == 0 ? 0 : RoutingTables.count(rows: rows, experts: experts)
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
