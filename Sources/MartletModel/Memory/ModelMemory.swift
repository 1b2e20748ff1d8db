internal import MartletCore

/// All memory of a model under a plan. Carved from a measuring arena it is the memory table; from a real one, the run.
final class ModelMemory {
    let tokens_T, targets_T, positions_T: Tensor
    let results: StepResults
    /// Trained parameters, in a fixed order: embedding first, then layer by layer, then the head.
    let parameters: [Parameter]
    /// The same as they are while what lives in host memory visits the device.
    let visiting: [Parameter]
    /// Indices of what is trained of each layer.
    let layerParameters: [Range<Int>]
    /// Of the layers whose gradients, and whose optimizer state, live in host memory: the first ones.
    let gradientPieces, statePieces: [HostPiece]
    /// Adapter factors that are only applied.
    let appliedAdapters: [Weight: (a: Tensor, b: Tensor)]
    /// Embedding, final norm and head, unless they are trained.
    let outerWeights: [Weight: Tensor]
    /// Slots for decoded layer weights: one, or one a layer; nothing where the parameter itself is computed with.
    let layerSlots: [[Weight.Kind: Tensor]]
    let rope: RoPE
    let hidden: LayerTensors
    let dhidden_TH: Tensor?
    /// Rotated keys and values of the step; one a layer when generating, else shared.
    let keyValueRows: [KeyValueRows]
    /// The gradients of both, one behind the other.
    let dkeyValues_2UGD: Tensor?
    /// The down projections' skinny products, one a layer: their backward pass reads what the forward pass made, and a layer that
    /// recomputes has no down projection. Of each token its rows side by side.
    let downLow: LayerTensors
    /// Of the adapters whose products are kept; 0: none.
    let lowRank: Int
    /// One a kept layer, by layer.
    let kept: [Int: SavedActivations]
    /// Of the whole step, one a layer that recomputes the rest.
    let keptOutputs: [Int: AttentionOutput]
    /// Of the layers before those, where attention's output waits in host memory: the first `outputLayersOut`.
    let outputsOut: LayerTensors
    let outputLayersOut: Int
    /// Of the layers that do not keep.
    let tiles: TileMemory
    let workspace: Workspace
    /// Room for logits that are read back.
    let logits_TV: Tensor

    init(
        _ c: ModelConfiguration, _ settings: ModelSettings, _ plan: ExecutionPlan, _ backend: any Backend,
        in memory: Memory
    ) {
        let arena = memory.device
        let dtype = backend.computeDType
        let T = plan.stepTokens, L = c.layerCount, G = c.keyValueHeadCount, D = c.headSize
        tokens_T = arena.carve([T], .int32, for: .workspace)
        targets_T = arena.carve([T], .int32, for: .workspace)
        positions_T = arena.carve([T], .int32, for: .workspace)

        let trainables = Trainables(c, settings, plan, in: memory, dtype)
        parameters = trainables.parameters
        visiting = trainables.visiting
        layerParameters = trainables.layerParameters
        (gradientPieces, statePieces) = (trainables.gradientPieces, trainables.statePieces)
        results = StepResults(
            tokens: T, offsets: [c.isSparse.count { $0 }, plan.tileCount, (c.experts?.expertCount ?? 0) + 1],
            parameters: parameters.count, in: arena)
        appliedAdapters = trainables.applied
        let whole = Set(parameters.filter { $0.role == .whole }.map(\.weight))

        outerWeights = Dictionary(
            uniqueKeysWithValues: c.outerWeights.filter { !whole.contains($0) }.map {
                ($0, arena.carve(c.shape(of: $0), dtype, for: .weights))
            })
        layerSlots = ModelMemory.layerSlots(c, plan, whole, arena, dtype)
        rope = RoPE(
            cosine_PJ: arena.carve([plan.maximumLength, D / 2], .float32, for: .weights),
            sine_PJ: arena.carve([plan.maximumLength, D / 2], .float32, for: .weights))

        // Without a backward pass two are enough; the loss uses the last one up at once.
        hidden = LayerTensors(
            [([T, c.hiddenSize], dtype)], slots: settings.trains && !plan.hiddenOut ? L + 1 : 2,
            homes: plan.hiddenOut ? L : 0, of: L, for: .hidden, backend, in: memory)
        dhidden_TH = settings.trains ? arena.carve([T, c.hiddenSize], dtype, for: .hidden) : nil
        func carveRows(_ row: Arena.Row) -> KeyValueRows {
            KeyValueRows(
                key_UGD: arena.carve([T, G, D], dtype, for: row), value_UGD: arena.carve([T, G, D], dtype, for: row))
        }
        keyValueRows = (0..<(plan.caches ? L : 1)).map { _ in carveRows(plan.caches ? .cache : .workspace) }
        dkeyValues_2UGD = settings.trains ? arena.carve([2, T, G, D], dtype, for: .workspace) : nil

        let lowRank = backend.keepsLowProducts && settings.trains ? settings.adapter?.rank ?? 0 : 0
        self.lowRank = lowRank
        let lowShape = Shape([T, lowRank * (c.isSparse.map { c.routes(isSparse: $0) }.max() ?? 0)])
        downLow = LayerTensors(
            lowRank > 0 ? [(lowShape, dtype)] : [], slots: plan.hiddenOut ? 2 : L, homes: plan.hiddenOut ? L : 0, of: L,
            for: plan.hiddenOut ? .hidden : .kept, backend, in: memory)
        let firstKept = L - plan.keptLayers, firstOutput = L - max(plan.keptOutputs, plan.keptLayers)
        let tableCount = c.routingTableCount(plan, backend)
        kept = Dictionary(
            uniqueKeysWithValues: (firstKept..<L).map {
                (
                    $0,
                    SavedActivations(
                        keeping: c, isSparse: c.isSparse[$0], plan, rank: lowRank, tableCount: tableCount, in: arena,
                        dtype)
                )
            })
        keptOutputs = Dictionary(
            uniqueKeysWithValues: (firstOutput..<firstKept).map {
                ($0, AttentionOutput(c, rows: T, in: arena, for: .kept, dtype))
            })
        outputLayersOut = plan.outputsOut ? firstOutput : 0
        outputsOut = LayerTensors(
            [([T, c.queryHeadCount, D], dtype), ([T, c.queryHeadCount], .float32)], slots: min(2, outputLayersOut),
            homes: outputLayersOut, of: outputLayersOut, for: .kept, backend, in: memory)
        tiles = TileMemory(c, settings, plan, rank: lowRank, backend, in: memory)
        workspace = Workspace(c, tile: plan.tileTokens, trains: settings.trains, in: arena, dtype)
        logits_TV = arena.carve([plan.logitRows, c.vocabularyCount], dtype, for: .workspace)
        backend.reserveScratch(for: c.scratchShapes(plan, settings), in: arena)
    }

    private static func layerSlots(
        _ c: ModelConfiguration, _ plan: ExecutionPlan, _ whole: Set<Weight>, _ arena: Arena, _ dtype: DType
    ) -> [[Weight.Kind: Tensor]] {
        if plan.keepsWeights {
            return (0..<c.layerCount).map { layer in
                Dictionary(
                    uniqueKeysWithValues: c.layerWeights(layer).filter { !whole.contains($0) }.map {
                        ($0.kind, arena.carve(c.shape(of: $0), dtype, for: .weights))
                    })
            }
        }
        // One slot that fits any layer: a weight's shape depends only on its kind.
        var slot: [Weight.Kind: Tensor] = [:]
        for layer in 0..<c.layerCount {
            for weight in c.layerWeights(layer) where slot[weight.kind] == nil && !whole.contains(weight) {
                slot[weight.kind] = arena.carve(c.shape(of: weight), dtype, for: .layer)
            }
        }
        return [slot]
    }
}

extension ModelConfiguration {
    /// Rows of a layer's feed-forward half for each token.
    func routes(isSparse: Bool) -> Int { isSparse ? experts?.expertsPerToken ?? 0 : 1 }

    func scratchShapes(_ plan: ExecutionPlan, _ settings: ModelSettings) -> ScratchShapes {
        var shapes = ScratchShapes()
        shapes.tokens = plan.tileTokens
        shapes.keyRows = plan.stepTokens
        shapes.sequence = min(plan.maximumLength, plan.stepTokens)
        shapes.hidden = hiddenSize
        shapes.vocabulary = vocabularyCount
        shapes.queryHeads = queryHeadCount
        shapes.keyValueHeads = keyValueHeadCount
        shapes.headSize = headSize
        shapes.experts = experts?.expertCount ?? 0
        shapes.expertsPerToken = experts?.expertsPerToken ?? 0
        shapes.expertInner = experts?.innerSize ?? 0
        let inner = isSparse.allSatisfy { $0 } ? 0 : denseInnerSize
        shapes.widest = max(hiddenSize, queryHeadCount * headSize, inner, experts?.expertCount ?? 0)
        shapes.rank = settings.adapter?.rank ?? 0
        shapes.trains = settings.trains
        shapes.room = plan.room
        shapes.dropsOut = (settings.adapter?.dropout ?? 0) > 0
        shapes.trainsWeights = settings.method == .full
        return shapes
    }
}
