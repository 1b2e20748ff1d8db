package import MartletCore

/// The ways to compute experts on a GPU.
package enum ExpertsPath: String, Sendable, CaseIterable {
    /// Grouped products by TMA and wgmma (sm_90a).
    case hopper
    /// Grouped products by mma.sync, and from sm_80 on cp.async.
    case portable
    /// One library product an expert; what the others are checked against.
    case loop
}

extension ExpertsSize {
    /// The most blocks of at most 128 rows of one expert.
    var tileCount: Int { r / 128 + e }

    /// What keeps the grouped kernels from computing these; nil: nothing.
    func obstacle(_ dtype: DType, dropsOut: Bool, trainsWeights: Bool) -> String? {
        if !dtype.isHalf { return "the grouped kernels compute in 16 bits only" }
        if dropsOut { return "their adapters have dropout" }
        if trainsWeights { return "their weights are trained" }
        if a > 64 { return "rank \(a) is above 64" }
        if h % 8 != 0 || f % 8 != 0 { return "hidden \(h) and inner \(f) are not both multiples of 8" }
        return e > 1024 ? "\(e) experts are above 1024" : nil
    }

    /// The same with the rank that the grouped kernels work at: a multiple of 16, zeros behind the adapter's own.
    var grouped: ExpertsSize {
        var copy = self
        copy.a = roundUp(a, to: 16)
        return copy
    }
}

extension CUDABackend {
    package func experts(
        _ x_TH: Tensor, _ routing: Routing, _ experts: Experts, firstRow: Int, into gateUp_RF: Tensor,
        _ y_TH: Tensor?, residual_TH: Tensor
    ) {
        let size = ExpertsSize(x_TH, routing, experts), path = expertsPath(experts, size)
        guard size.r > 0 else { return }
        device.timed("experts") {
            path == .loop
                ? LoopExperts(self, size, routing, experts, firstRow).forward(x_TH, gateUp_RF, y_TH, residual_TH)
                : GroupedExperts(self, path, size, routing, experts).forward(x_TH, gateUp_RF, y_TH, residual_TH)
        }
    }

    package func expertsBackward(
        _ x_TH: Tensor, _ routing: Routing, _ experts: Experts, firstRow: Int, _ gateUp_RF: Tensor, _ dy_TH: Tensor,
        into dx_TH: Tensor, _ dweight_TK: Tensor, gradients: Accumulation
    ) {
        let size = ExpertsSize(x_TH, routing, experts), path = expertsPath(experts, size)
        guard size.r > 0 else { return gradients == .first ? zero(experts.gradients) : () }
        device.timed("expertsBackward") {
            path == .loop
                ? LoopExperts(self, size, routing, experts, firstRow)
                    .backward(x_TH, gateUp_RF, dy_TH, dx_TH, dweight_TK, gradients)
                : GroupedExperts(self, path, size, routing, experts)
                    .backward(x_TH, gateUp_RF, dy_TH, dx_TH, dweight_TK, gradients)
        }
    }

    private func expertsPath(_ experts: Experts, _ size: ExpertsSize) -> ExpertsPath {
        expertsPath(
            size, dropsOut: experts.gateUpAdapter?.dropout != nil || experts.downAdapter?.dropout != nil,
            trainsWeights: experts.dgateUp_EFH != nil)
    }

    /// The path that experts take: the chosen one where it can compute them, else the loop.
    private func expertsPath(_ size: ExpertsSize, dropsOut: Bool, trainsWeights: Bool) -> ExpertsPath {
        size.obstacle(computeDType, dropsOut: dropsOut, trainsWeights: trainsWeights) == nil ? expertsPath : .loop
    }

    /// Whether experts of these shapes take grouped kernels.
    func groupsExperts(_ shapes: ScratchShapes) -> Bool {
        let size = ExpertsSize(shapes)
        return size.e > 0 && size.r > 0
            && expertsPath(size, dropsOut: shapes.dropsOut, trainsWeights: shapes.trainsWeights) != .loop
    }

    /// That experts take the loop, and why; nil where they do not.
    func expertsRemark(on shapes: ScratchShapes) -> String? {
        let size = ExpertsSize(shapes)
        guard size.e > 0 else { return nil }
        let obstacle = size.obstacle(computeDType, dropsOut: shapes.dropsOut, trainsWeights: shapes.trainsWeights)
        guard let reason = obstacle ?? (expertsPath == .loop ? "MARTLET_MOE_BACKEND says so" : nil) else { return nil }
        return "experts are computed one after another, which is slow: \(reason)"
    }

    /// The temporaries that experts of these shapes need.
    func reserveExperts(_ scratch: inout Scratch, _ shapes: ScratchShapes) {
        let size = ExpertsSize(shapes)
        if expertsPath(size, dropsOut: shapes.dropsOut, trainsWeights: shapes.trainsWeights) == .loop {
            _ = LoopScratch(&scratch, size, computeDType, dropsOut: shapes.dropsOut)
        } else {
            _ = GroupedScratch(&scratch, size.grouped, computeDType)
        }
    }

    /// The fastest path that the GPU has, unless `MARTLET_MOE_BACKEND` names another.
    static func expertsPath(
        capability: Int, named name: String? = environment("MARTLET_MOE_BACKEND")
    ) throws(MartletError) -> ExpertsPath {
        guard let path = try override("MARTLET_MOE_BACKEND", "MoE backend", named: name, of: ExpertsPath.self) else {
            return capability == 90 ? .hopper : .portable
        }
        guard path != .hopper || capability == 90 else {
            throw MartletError(
                "the MoE backend 'hopper' does not run on this GPU", in: "MARTLET_MOE_BACKEND",
                because: "it needs compute capability 9.0, and this is \(capability / 10).\(capability % 10)",
                fix: "unset it, or write 'portable'")
        }
        return path
    }
}
