internal import MartletCore
internal import MartletModel

/// What a step cannot do without, op by op: all calls of an op together, by the definitions that ``OpBenchmark`` counts by.
/// What is computed again to save memory is not counted.
struct StepCosts {
    struct Cost {
        var flops = 0.0, bytes = 0.0

        static func + (a: Cost, b: Cost) -> Cost { Cost(flops: a.flops + b.flops, bytes: a.bytes + b.bytes) }
        static func * (a: Cost, factor: Double) -> Cost { Cost(flops: a.flops * factor, bytes: a.bytes * factor) }

        /// Milliseconds that a device with these roofs needs: of operations or of bytes, whichever take longer.
        func milliseconds(gigaflops: Double, gigabytes: Double) -> Double {
            max(flops / gigaflops, bytes / gigabytes) / 1e6
        }
    }

    private(set) var costs: [String: Cost] = [:]
    /// Of all ops: what MFU counts.
    var flops: Double { costs.values.reduce(0) { $0 + $1.flops } }

    let c: ModelConfiguration, T: Double, rank: Double
    /// Whether every weight is trained, not adapters of `rank`.
    let trainsWeights: Bool
    /// Bytes of an activation or a frozen weight.
    let size: Double

    init(_ c: ModelConfiguration, _ step: PackedStep, _ settings: ModelSettings, dtype: DType, trainedCount: Int) {
        (self.c, T, size) = (c, Double(step.tokenCount), Double(dtype.byteCount))
        rank = Double(settings.adapter?.rank ?? 0)
        trainsWeights = settings.method == .full
        for weight in c.weights where !weight.isNorm && weight != .embedding && weight != .head { product(weight) }
        attention(step)
        loss()
        rows()
        for isSparse in c.isSparse where isSparse { routing() }
        // Gradient, value, two moments: read, and all but the gradient written.
        add("adamW", bytes: Double(trainedCount) * (settings.quantizesMoments ? 4 + 8 + 4 : 28))
        add("sumsOfSquares", bytes: 4 * Double(trainedCount))
    }

    private mutating func add(_ op: String, flops: Double = 0, bytes: Double) {
        costs[op, default: Cost()].flops += flops
        costs[op, default: Cost()].bytes += bytes
    }

    /// A projection or the experts', there and back.
    private mutating func product(_ weight: Weight) {
        let shape = c.shape(of: weight), I = Double(shape[-1]), O = Double(shape[-2])
        let K = weight.isExperts ? Double(c.experts?.expertsPerToken ?? 0) : 1
        let used = weight.isExperts ? min(Double(c.experts?.expertCount ?? 0), T * K) : 1
        let A = weight.isAdaptable ? rank : 0, low = A * (I + O), op = weight.isExperts ? "experts" : "linear"
        // Of experts, tokens and not routed rows come in and go out.
        let isInner = if case .expertsDown = weight { true } else { false }
        let isOuter = if case .expertsGateUp = weight { true } else { false }
        let rows = size * T * ((isInner ? 0 : I) + (isOuter ? K : 1) * O), weights = size * used * I * O
        add(op, flops: 2 * T * K * (I * O + low), bytes: rows + weights + 4 * used * low)
        let trained = trainsWeights ? size * T * I + 4 * used * I * O : 4 * used * 2 * low
        add(
            op + "Backward", flops: 2 * T * K * ((trainsWeights ? 2 : 1) * I * O + 2 * low),
            bytes: rows + weights + trained)
    }

    /// Causal: half of each square of scores, in 2 products forward and 5 backward.
    private mutating func attention(_ step: PackedStep) {
        let L = Double(c.layerCount), Q = Double(c.queryHeadCount), G = Double(c.keyValueHeadCount),
            D = Double(c.headSize)
        let squares = zip(step.offsets, step.offsets.dropFirst()).reduce(0.0) {
            $0 + Double(($1.1 - $1.0) * ($1.1 - $1.0))
        }
        let product = L * squares * Q * D, queries = L * size * T * Q * D, keys = L * size * T * G * D
        add("attention", flops: 2 * product, bytes: 2 * queries + 2 * keys)
        add("attentionBackward", flops: 5 * product, bytes: 4 * queries + 6 * keys)
        add("rotate", bytes: 2 * (queries + keys))
        add("rotateBackward", bytes: 3 * (queries + keys))
    }

    private mutating func loss() {
        let H = Double(c.hiddenSize), V = Double(c.vocabularyCount)
        add("crossEntropy", flops: (trainsWeights ? 6 : 4) * T * H * V, bytes: size * (2 * T * H + H * V))
    }

    /// What reads and writes rows of the hidden states.
    private mutating func rows() {
        let row = size * T * Double(c.hiddenSize), norms = Double(2 * c.layerCount + 1)
        add("embedding", bytes: 2 * row)
        add("rmsNorm", bytes: 2 * row * norms)
        add("rmsNormBackward", bytes: 4 * row * norms)
        let inner = size * T * Double(c.denseInnerSize) * Double(c.isSparse.count { !$0 })
        guard inner > 0 else { return }
        add("swiGLU", bytes: 3 * inner)
        add("swiGLUBackward", bytes: 5 * inner)
    }

    /// Of one layer: probabilities, choices with their weights, the order.
    private mutating func routing() {
        let E = Double(c.experts?.expertCount ?? 0), K = Double(c.experts?.expertsPerToken ?? 0)
        add("route", bytes: T * ((size + 4) * E + 12 * K))
        add("routeBackward", bytes: T * ((size + 4) * E + 12 * K))
    }
}
