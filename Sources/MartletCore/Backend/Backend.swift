/// The verbs of training, in the order of the flow. The CPU backend is the definition of each verb; every other
/// backend is an optimisation of it that must agree.
///
/// Rules: an op writes where it is told and never allocates. Activations are overwritten (`into:`), or added to where
/// the parameter says `adding:`; parameter gradients accumulate (`accumulating:`), those of projections and experts as
/// `gradients:` says. An optional gradient that is `nil` is not computed. Shapes stand in the names:
/// `T` tokens of a tile, `U` rows of the key/value buffer, `H` hidden, `V` vocabulary, `Q` query heads, `G` key/value
/// heads, `D` head size, `E` experts, `K` experts a token, `R` = T x K routed rows, `F` expert (or MLP) inner size,
/// `A` LoRA rank, `I`/`O` inputs and outputs of a projection, `N` any count.
/// All activations and gradients are of the backend's `computeDType`; ids are `int32`; statistics are float32.
package protocol Backend: AnyObject {
    /// Shown to people: "cpu (AVX-512, 2 threads)".
    var name: String { get }
    var computeDType: DType { get }
    /// Rows of a tile from which on more rows are not faster.
    var preferredTileTokens: Int { get }
    /// Whether reading a weight again costs far more than computing with it: memory then goes to weights first.
    var fetchesWeightsSlowly: Bool { get }
    /// Whether the backward pass is faster with the adapters' skinny products at hand (`LoRA.low`).
    var keepsLowProducts: Bool { get }
    /// What `Routing.tables` takes for so many routed rows, in int32; 0: nothing is kept.
    func routingTableCount(rows: Int, experts: Int) -> Int

    // MARK: Memory

    /// Memory for a run, every byte touched, so that running out is an answer now and not in step 300.
    func makeArena(byteCount: Int) throws(MartletError) -> Arena
    /// Memory of the host, every byte touched, that ops can read and write where it lies: as any other on the CPU, over the bus
    /// on a GPU.
    func makeHostArena(byteCount: Int) throws(MartletError) -> Arena
    /// y = x beside the ops that follow, after all those before; until `wait(for:)` nobody may write x or touch y.
    func transfer(_ x_N: Tensor, to y_N: Tensor) -> Transfer
    /// The ops that follow start when the copy is done.
    func wait(for transfer: Transfer)
    /// Carves the scratch memory that ops of these shapes need; called once, before the first op.
    func reserveScratch(for shapes: ScratchShapes, in arena: Arena)
    /// Lets a backend see ops to come, of all sizes: it may call `body`, in which nothing is computed, and make ready what they need
    /// beside what follows.
    func rehearse(_ body: () -> Void)
    /// What a person should know of the way in which such shapes are computed: that it is a slow one, and why.
    func remarks(on shapes: ScratchShapes) -> [String]
    /// Copies `source` (elements of `dtype`, on the host) into `destination`, converting to its dtype.
    func upload(_ source: UnsafeRawBufferPointer, as dtype: DType, into destination: Tensor)
    /// Copies `source` to the host, in its own dtype, once everything before is done.
    func download(_ source: Tensor, into destination: UnsafeMutableRawBufferPointer)
    func zero(_ x_N: Tensor)
    /// The same for many tensors at once.
    func zero(_ tensors: [Tensor])
    /// Numbers in -bound ..< bound: element i is (2 u - 1) bound, where u is uniform number i of `RandomStream(seed:)`.
    func fillUniform(_ x_N: Tensor, bound: Float, seed: UInt64)
    /// Normally distributed numbers that depend on the seed and the element only; for benchmarks.
    func fillNormal(_ x_N: Tensor, standardDeviation: Float, seed: UInt64)
    /// y = x
    func set(_ y_N: Tensor, to x_N: Tensor)
    /// Each master, which is in halves, becomes x; x is float32.
    func split(_ pairs: [(x_N: Tensor, master: Master)])
    /// y += x
    func add(_ x_N: Tensor, adding y_N: Tensor)

    // MARK: Embedding, norms, projections

    func embedding(_ tokens_T: Tensor, _ table_VH: Tensor, into x_TH: Tensor)
    func embeddingBackward(_ tokens_T: Tensor, _ dx_TH: Tensor, accumulating dtable_VH: Tensor)

    /// y = w * x / sqrt(mean(x^2) + epsilon), row by row.
    func rmsNorm(_ x_TH: Tensor, _ weight_H: Tensor, epsilon: Float, into y_TH: Tensor)
    func rmsNormBackward(
        _ x_TH: Tensor, _ weight_H: Tensor, epsilon: Float, _ dy_TH: Tensor,
        adding dx_TH: Tensor, accumulating dweight_H: Tensor?)

    /// y = x W^T + b + s B (A dropout(x)); `adds` adds to what stands in y (the residual stream).
    /// `firstRow` is the tile's first token in the step: dropout depends on it and not on the tiling.
    func linear(_ x_TI: Tensor, _ layer: Linear, firstRow: Int, into y_TO: Tensor, adds: Bool)
    /// dx (+)= dy W + ...; dA, dB, dW, db, where the layer has them, overwrite or accumulate. `dx_TI` nil: not wanted.
    func linearBackward(
        _ x_TI: Tensor, _ layer: Linear, firstRow: Int, _ dy_TO: Tensor, into dx_TI: Tensor?, adds: Bool,
        gradients: Accumulation)
    /// y = residual + linear(x).
    func linear(_ x_TI: Tensor, _ layer: Linear, firstRow: Int, into y_TO: Tensor, residual_TO: Tensor)
    /// Each y = linear(x) of its layer: layers that share their input.
    func linear(_ x_TI: Tensor, _ layers: [Linear], firstRow: Int, into y_TO: [Tensor])
    /// dx = the sum of what each layer's `linearBackward` gives.
    func linearBackward(
        _ x_TI: Tensor, _ layers: [Linear], firstRow: Int, _ dy_TO: [Tensor], into dx_TI: Tensor,
        gradients: Accumulation)

    // MARK: Attention

    /// RMSNorm over each head (where there is a weight), then rotation by position: x_TND -> y_TND for N heads.
    func rotate(_ x_TND: Tensor, _ norm: HeadNorm?, _ rope: RoPE, _ positions_T: Tensor, into y_TND: Tensor)
    func rotateBackward(
        _ x_TND: Tensor, _ norm: HeadNorm?, _ rope: RoPE, _ positions_T: Tensor, _ dy_TND: Tensor, into dx_TND: Tensor)

    /// Causal attention inside each span; query head h reads key/value head h / (Q / G).
    /// `logSumExp_TQ` keeps the softmax denominators for the backward pass.
    func attention(
        _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ spans: [AttentionSpan], scale: Float,
        into o_TQD: Tensor, logSumExp_TQ: Tensor)
    func attentionBackward(
        _ q_TQD: Tensor, _ k_UGD: Tensor, _ v_UGD: Tensor, _ o_TQD: Tensor, _ logSumExp_TQ: Tensor,
        _ do_TQD: Tensor, _ spans: [AttentionSpan], scale: Float,
        into dq_TQD: Tensor, adding dk_UGD: Tensor, _ dv_UGD: Tensor)

    // MARK: Mixture of experts

    /// Softmax over the experts, top-K (ties to the lowest index), optional renormalisation, and the order in which the
    /// expert kernels walk the rows.
    func route(_ logits_TE: Tensor, _ options: RouterOptions, into routing: Routing)
    /// The gradient of the logits. `auxiliary` adds the load-balancing and z losses.
    func routeBackward(
        _ routing: Routing, _ options: RouterOptions, _ dweight_TK: Tensor, _ auxiliary: RouterAuxiliary?,
        into dlogits_TE: Tensor)

    /// y = residual + sum over k of weight_k * down(silu(gate x) * up x) of expert_k; adapters and dropout inside.
    /// Leaves the pre-activations in `gateUp_RF`, rows in the routing's order, for the backward pass; with `y_TH` nil
    /// only those are made.
    func experts(
        _ x_TH: Tensor, _ routing: Routing, _ experts: Experts, firstRow: Int, into gateUp_RF: Tensor,
        _ y_TH: Tensor?, residual_TH: Tensor)
    /// The gradients of x and of the routing weights overwrite; adapters' and weights' gradients as `gradients` says.
    func expertsBackward(
        _ x_TH: Tensor, _ routing: Routing, _ experts: Experts, firstRow: Int, _ gateUp_RF: Tensor, _ dy_TH: Tensor,
        into dx_TH: Tensor, _ dweight_TK: Tensor, gradients: Accumulation)

    /// y = silu(gate) * up, for a dense MLP.
    func swiGLU(_ gate_TF: Tensor, _ up_TF: Tensor, into y_TF: Tensor)
    /// `dgate_TF` may be `gate_TF` itself, and `dup_TF` may be `up_TF`.
    func swiGLUBackward(
        _ gate_TF: Tensor, _ up_TF: Tensor, _ dy_TF: Tensor, into dgate_TF: Tensor, _ dup_TF: Tensor)

    // MARK: Loss and optimizer

    /// Cross-entropy of softmax(x W^T) against `targets_T` (-1: no loss), tiled so that the logits never exist whole.
    /// `loss_T` gets each row's loss (0 where there is none). With a `gradientScale` (1 / targets of the step) the
    /// gradient overwrites `dx_TH` and accumulates in `dhead_VH`.
    func crossEntropy(
        _ x_TH: Tensor, _ head_VH: Tensor, _ targets_T: Tensor, gradientScale: Float?,
        into loss_T: Tensor, _ dx_TH: Tensor?, accumulating dhead_VH: Tensor?)

    /// The sum of squares of all elements of each tensor, in double, in a fixed order.
    func sumsOfSquares(of tensors: [Tensor]) -> [Double]
    /// The same, left in `sums_N` without a wait: the bits of doubles, as int64.
    func sumsOfSquares(of tensors: [Tensor], into sums_N: Tensor)
    /// Whether every element is finite.
    func isFinite(_ x_N: Tensor) -> Bool
    /// AdamW (Loshchilov & Hutter 2019) with bias correction; gradients are multiplied by `gradientScale` (clipping).
    /// Moments may be float32 or of 8 bits; those of 8 bits have the same bytes on every backend.
    func adamW(
        _ parameters: [AdamWParameter], _ settings: AdamWSettings, step: Int, learningRate: Float, gradientScale: Float)

    /// Waits until everything asked for is done, and throws what went wrong on the way.
    func finish() throws(MartletError)
}

extension Backend {
    package func rehearse(_ body: () -> Void) {}

    package func remarks(on shapes: ScratchShapes) -> [String] { [] }

    package func routingTableCount(rows: Int, experts: Int) -> Int { 0 }

    package func zero(_ tensors: [Tensor]) {
        for tensor in tensors { zero(tensor) }
    }

    package func linear(
        _ x_TI: Tensor, _ layer: Linear, firstRow: Int, into y_TO: Tensor, residual_TO: Tensor
    ) {
        set(y_TO, to: residual_TO)
        linear(x_TI, layer, firstRow: firstRow, into: y_TO, adds: true)
    }

    package func linear(_ x_TI: Tensor, _ layers: [Linear], firstRow: Int, into y_TO: [Tensor]) {
        for (layer, y_TO) in zip(layers, y_TO) { linear(x_TI, layer, firstRow: firstRow, into: y_TO, adds: false) }
    }

    package func linearBackward(
        _ x_TI: Tensor, _ layers: [Linear], firstRow: Int, _ dy_TO: [Tensor], into dx_TI: Tensor,
        gradients: Accumulation
    ) {
        for (s, layer) in layers.enumerated() {
            linearBackward(x_TI, layer, firstRow: firstRow, dy_TO[s], into: dx_TI, adds: s > 0, gradients: gradients)
        }
    }

    package func sumOfSquares(_ x_N: Tensor) -> Double { sumsOfSquares(of: [x_N])[0] }

    package func adamW(
        _ value_N: Tensor, _ gradient_N: Tensor, _ firstMoment_N: Tensor, _ secondMoment_N: Tensor,
        _ settings: AdamWSettings, step: Int, learningRate: Float, gradientScale: Float
    ) {
        let parameter = AdamWParameter(
            master: Master(value: value_N), gradient: gradient_N, firstMoment: firstMoment_N,
            secondMoment: secondMoment_N,
            weightDecay: settings.weightDecay)
        adamW([parameter], settings, step: step, learningRate: learningRate, gradientScale: gradientScale)
    }
}
