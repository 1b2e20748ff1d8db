/// What an op does with what stands in the gradients of parameters.
package enum Accumulation: Sendable {
    /// The first contribution of a step overwrites it: with zeros where there is none, as of an expert without rows.
    case first
    /// Later ones are added to it.
    case later

    package var adds: Bool { self == .later }
}

/// A frozen or trained projection, with its adapter if it has one.
package struct Linear: Sendable {
    package var weight_OI: Tensor
    package var bias_O: Tensor?
    package var adapter: LoRA?
    /// Present when the weight itself is trained.
    package var dweight_OI: Tensor?
    package var dbias_O: Tensor?

    package init(
        weight_OI: Tensor, bias_O: Tensor? = nil, adapter: LoRA? = nil, dweight_OI: Tensor? = nil,
        dbias_O: Tensor? = nil
    ) {
        self.weight_OI = weight_OI
        self.bias_O = bias_O
        self.adapter = adapter
        self.dweight_OI = dweight_OI
        self.dbias_O = dbias_O
    }

    /// Those that are wanted.
    package var gradients: [Tensor] { [adapter?.da, adapter?.db, dweight_OI, dbias_O].compactMap { $0 } }
}

/// A low-rank adapter (Hu et al. 2021): y += scale * B (A dropout(x)). The delta of the weight is never formed.
///
/// For a projection A is [A, I] and B is [O, A]; for experts each has a leading axis E.
package struct LoRA: Sendable {
    package var a: Tensor
    package var b: Tensor
    /// Gradients of A and B; nil when the adapter is only used, not trained.
    package var da: Tensor?
    package var db: Tensor?
    /// alpha / r, or alpha / sqrt(r) for rsLoRA.
    package var scale: Float
    package var dropout: Dropout?
    /// Room for the skinny product of every row, [T, A] or [R, A] in the compute dtype: the forward pass leaves in it what the
    /// same backend's backward pass wants to find. nil: the product is made again.
    package var low: Tensor?

    package init(a: Tensor, b: Tensor, da: Tensor? = nil, db: Tensor? = nil, scale: Float, dropout: Dropout? = nil) {
        self.a = a
        self.b = b
        self.da = da
        self.db = db
        self.scale = scale
        self.dropout = dropout
    }
}

/// Inverted dropout on the input of an adapter. The mask is a function of (key, row, column), so the backward pass makes
/// it again. Element i = row * width + column of a [rows, width] input owns word i % 4 of counter i / 4 under
/// `Philox(seed: key)`; it is kept when (word >> 8) * 2^-24 is at least `probability`, and then scaled by
/// 1 / (1 - probability).
/// The row of a projection is `firstRow + t`; of an expert `(firstRow + t) * K + k`.
package struct Dropout: Sendable {
    package var probability: Float
    package var key: UInt64

    package init(probability: Float, key: UInt64) {
        self.probability = probability
        self.key = key
    }
}

/// The experts of one layer. `gateUp_EFH` is [E, 2F, H], gate rows first; `down_EHF` is [E, H, F].
package struct Experts: Sendable {
    package var gateUp_EFH: Tensor
    package var down_EHF: Tensor
    /// A [E, A, H], B [E, 2F, A].
    package var gateUpAdapter: LoRA?
    /// A [E, A, F], B [E, H, A].
    package var downAdapter: LoRA?
    package var dgateUp_EFH: Tensor?
    package var ddown_EHF: Tensor?

    package init(
        gateUp_EFH: Tensor, down_EHF: Tensor, gateUpAdapter: LoRA? = nil, downAdapter: LoRA? = nil,
        dgateUp_EFH: Tensor? = nil, ddown_EHF: Tensor? = nil
    ) {
        self.gateUp_EFH = gateUp_EFH
        self.down_EHF = down_EHF
        self.gateUpAdapter = gateUpAdapter
        self.downAdapter = downAdapter
        self.dgateUp_EFH = dgateUp_EFH
        self.ddown_EHF = ddown_EHF
    }

    /// Those that are wanted.
    package var gradients: [Tensor] {
        [gateUpAdapter?.da, gateUpAdapter?.db, downAdapter?.da, downAdapter?.db, dgateUp_EFH, ddown_EHF]
            .compactMap { $0 }
    }
}

/// The norm that some families apply to each query and key head.
package struct HeadNorm: Sendable {
    package var weight_D: Tensor
    package var epsilon: Float
    package var dweight_D: Tensor?

    package init(weight_D: Tensor, epsilon: Float, dweight_D: Tensor? = nil) {
        self.weight_D = weight_D
        self.epsilon = epsilon
        self.dweight_D = dweight_D
    }
}

/// Rotary position tables: row p holds cos (and sin) of p * f_j for j < D/2; pairs are (x_j, x_{j + D/2}).
package struct RoPE: Sendable {
    package var cosine_PJ: Tensor
    package var sine_PJ: Tensor

    package init(cosine_PJ: Tensor, sine_PJ: Tensor) {
        self.cosine_PJ = cosine_PJ
        self.sine_PJ = sine_PJ
    }
}

/// One sequence's part of a tile. Query row `queryStart + i` sees key rows
/// `keyStart ..< keyStart + keyCount - queryCount + i + 1`: causal, aligned at the end. The spans of a call share no
/// query and no key.
package struct AttentionSpan: Sendable, Hashable {
    package var queryStart: Int
    package var queryCount: Int
    package var keyStart: Int
    package var keyCount: Int

    package init(queryStart: Int, queryCount: Int, keyStart: Int, keyCount: Int) {
        self.queryStart = queryStart
        self.queryCount = queryCount
        self.keyStart = keyStart
        self.keyCount = keyCount
    }
}

package struct RouterOptions: Sendable, Equatable {
    package var expertsPerToken: Int
    /// Divide the K weights by their sum.
    package var normalizesTopK: Bool

    package init(expertsPerToken: Int, normalizesTopK: Bool) {
        self.expertsPerToken = expertsPerToken
        self.normalizesTopK = normalizesTopK
    }
}

/// Where the tokens of a tile go.
package struct Routing: Sendable {
    /// Softmax over all experts, float32.
    package var probability_TE: Tensor
    /// log-sum-exp of each row of logits (for the z loss).
    package var logSumExp_T: Tensor
    /// Chosen experts, int32, by descending probability.
    package var expert_TK: Tensor
    package var weight_TK: Tensor
    /// Flat indices t * K + k grouped by expert, ascending inside a group, int32.
    package var order_R: Tensor
    /// First position of each expert's group in `order_R`, and R at the end, int32 [E + 1].
    package var offset_E1: Tensor
    /// Room for what a backend's experts read beside that, `Backend.routingTableCount` int32: `route` leaves it there for the same
    /// backend's `experts` and `expertsBackward`. nil: they make it again.
    package var tables: Tensor?

    package init(
        probability_TE: Tensor, logSumExp_T: Tensor, expert_TK: Tensor, weight_TK: Tensor, order_R: Tensor,
        offset_E1: Tensor, tables: Tensor? = nil
    ) {
        self.probability_TE = probability_TE
        self.logSumExp_T = logSumExp_T
        self.expert_TK = expert_TK
        self.weight_TK = weight_TK
        self.order_R = order_R
        self.offset_E1 = offset_E1
        self.tables = tables
    }
}

/// Gradients that the auxiliary router losses add.
package struct RouterAuxiliary: Sendable {
    /// d loss / d probability, the same for every row: coefficient * E * f_e / rows (Switch Transformer loss).
    package var dprobability_E: Tensor
    /// d(z loss) / d logit = zScale * logSumExp * probability, with zScale = 2 * coefficient / rows (ST-MoE).
    package var zScale: Float

    package init(dprobability_E: Tensor, zScale: Float) {
        self.dprobability_E = dprobability_E
        self.zScale = zScale
    }
}

package struct AdamWSettings: Sendable, Equatable, Codable {
    package var beta1: Float
    package var beta2: Float
    package var epsilon: Float
    package var weightDecay: Float

    package init(beta1: Float = 0.9, beta2: Float = 0.999, epsilon: Float = 1e-8, weightDecay: Float = 0) {
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.weightDecay = weightDecay
    }
}

/// One tensor that the optimizer updates, with its state. The gradient is float32; so are the moments, unless
/// there are scales: then they are uint8, and a moment is entry `code` of `MomentTable` times the scale of its block.
package struct AdamWParameter: Sendable {
    package var master: Master
    package var gradient: Tensor
    package var firstMoment: Tensor
    package var secondMoment: Tensor
    package var scales: MomentScales?
    /// In place of the settings' own.
    package var weightDecay: Float

    package init(
        master: Master, gradient: Tensor, firstMoment: Tensor, secondMoment: Tensor, scales: MomentScales? = nil,
        weightDecay: Float
    ) {
        self.master = master
        self.gradient = gradient
        self.firstMoment = firstMoment
        self.secondMoment = secondMoment
        self.scales = scales
        self.weightDecay = weightDecay
    }
}

/// The scales of moments stored in 8 bits: the largest magnitude of each block of `blockSize` elements, float32.
package struct MomentScales: Sendable {
    package var first: Tensor
    package var second: Tensor

    package static let blockSize = 256
    package static func count(for elements: Int) -> Int { ceilDiv(elements, blockSize) }

    package init(first: Tensor, second: Tensor) {
        self.first = first
        self.second = second
    }
}

/// A copy under way beside the ops.
package struct Transfer: Sendable {
    /// Which one, as the backend counts them.
    package var number: Int

    package init(number: Int = 0) { self.number = number }
}

/// How much memory there is for temporaries that only save time.
package enum ScratchRoom: Sendable, Equatable {
    case scant, usual, ample
}

/// The largest shapes that ops will see, from which a backend sizes its scratch memory. 0 where there is none.
package struct ScratchShapes: Sendable, Equatable {
    /// Rows of a tile.
    package var tokens = 0
    /// Rows of the key/value buffer; 0 is as many as a tile has.
    package var keyRows = 0
    /// Rows of the longest sequence; 0 is as many as the key/value buffer has.
    package var sequence = 0
    package var hidden = 0
    package var vocabulary = 0
    package var queryHeads = 0
    package var keyValueHeads = 0
    package var headSize = 0
    package var experts = 0
    package var expertsPerToken = 0
    package var expertInner = 0
    /// The widest input or output of any projection.
    package var widest = 0
    package var rank = 0
    /// Whether a backward pass will run.
    package var trains = true
    /// What temporaries may take that only save time.
    package var room = ScratchRoom.usual
    /// Whether adapters have dropout.
    package var dropsOut = false
    /// Whether the weights themselves are trained.
    package var trainsWeights = false

    package init() {}
}
