internal import MartletCore
internal import MartletModel

// The works, by the kernels' own entries. Letters as in docs/house.md; bytes are of operands at `size` each, gradients of
// parameters and sums that blocks hand on at 4.
extension KernelCosts {
    /// Ops that one kernel does.
    mutating func addSingles() {
        let entries = [
            "rmsNorm": ["rms_norm"], "rmsNormBackward": ["rms_norm_backward"], "rotate": ["rotate"],
            "rotateBackward": ["rotate_backward"], "embedding": ["embedding"], "swiGLU": ["swiglu"],
            "swiGLUBackward": ["swiglu_backward"], "routeBackward": ["route_backward"],
            "attention": ["attention_sm90_forward", "attention_flash", "attention_plain", "cuDNN"],
            "adamW": ["adamw", "adamw_8bit", "adamw_split", "adamw_8bit_split"], "sumsOfSquares": ["square_partials"],
        ]
        for (op, entries) in entries {
            if let cost = step.costs[op] { add(op, entries, flops: cost.flops, bytes: cost.bytes) }
        }
    }

    /// Hopper's products leave float sums, of dk and dv one for each of some heads that share them, of which one is counted;
    /// `finish` makes gradients of them.
    mutating func addAttention() {
        let c = step.c, L = Double(c.layerCount), D = Double(c.headSize), T = step.T, size = step.size
        let heads = L * T * Double(c.queryHeadCount), queries = size * heads * D
        let keys = size * L * T * Double(c.keyValueHeadCount) * D, float = 4 / size
        let op = "attentionBackward", flops = step.costs[op]?.flops ?? 0
        add(op, ["attention_sm90_delta", "attention_delta"], bytes: 2 * queries + 12 * heads)
        add(
            op, ["attention_sm90_backward"], flops: flops,
            bytes: 2 * queries + 2 * keys + 8 * heads + float * (queries + 2 * keys))
        add(op, ["attention_sm90_finish"], bytes: float * (queries + 2 * keys) + queries + 4 * keys)
        add(op, ["attention_flash_backward", "cuDNN"], flops: flops, bytes: 3 * queries + 6 * keys + 8 * heads)
        // Scores and their gradients are made twice.
        add(op, ["attention_plain_queries"], flops: 0.6 * flops, bytes: 4 * queries + 2 * keys)
        add(op, ["attention_plain_keys"], flops: 0.4 * flops, bytes: 3 * queries + 6 * keys)
    }

    /// Projections: by the library's products, and those with adapters by Hopper's own kernels.
    mutating func addProjections() {
        for weight in step.c.weights where !weight.isNorm && !weight.isExperts && weight.layer != nil {
            let shape = step.c.shape(of: weight), A = weight.isAdaptable ? step.rank : 0
            addLibrary("linear", rows: step.T, copies: 1, I: Double(shape[-1]), O: Double(shape[-2]), A: A)
            if A > 0 { addHopper(weight.kind, I: Double(shape[-1]), O: Double(shape[-2]), A: A) }
        }
    }

    private mutating func addHopper(_ kind: Weight.Kind, I: Double, O: Double, A: Double) {
        let T = step.T, size = step.size, W = size * I * O, low = size * T * A, y = size * T * O
        // What projections share is read, and its gradient written, with the first of them.
        let isFirst = ![.key, .value, .up].contains(kind), x = isFirst ? size * T * I : 0
        let residual = [.output, .down].contains(kind) ? y : 0
        let (a, b) = (size * A * I, size * A * O), (forward, back) = (["TRANSPOSED": 0], ["TRANSPOSED": 1])
        add("linear", ["projection_low"], forward, flops: 2 * T * A * I, bytes: x + a + low)
        add("linear", ["projection"], forward, flops: 2 * T * (I + A) * O, bytes: x + W + low + b + y + residual)
        let op = "linearBackward"
        add(op, ["projection_low"], back, flops: 2 * T * A * O, bytes: y + b + low)
        add(op, ["projection_gradient"], flops: 2 * T * A * (I + O), bytes: x + y + 2 * low + 4 * A * (I + O))
        add(op, ["projection"], back, flops: 2 * T * (O + A) * I, bytes: y + W + low + a + x)
    }

    /// Products of `rows` by weights [O, I], of which there are `copies`, and their adapters.
    private mutating func addLibrary(_ op: String, rows R: Double, copies: Double, I: Double, O: Double, A: Double) {
        let size = step.size, back = op + "Backward"
        /// y [R, n] = x [R, k] M
        func product(_ op: String, n: Double, k: Double) {
            add(
                op, ["cuBLASLt"], ["n": Int(n), "k": Int(k)], flops: 2 * R * n * k,
                bytes: size * (R * (n + k) + copies * n * k))
        }
        /// dM [m, n] = u^T [m, R] v [R, n]
        func gradient(m: Double, n: Double) {
            add(
                back, ["cuBLASLt"], ["m": Int(m), "n": Int(n)], flops: 2 * R * m * n,
                bytes: size * R * (m + n) + 4 * copies * m * n)
        }
        product(op, n: O, k: I)
        product(back, n: I, k: O)
        if step.trainsWeights { gradient(m: O, n: I) }
        guard A > 0 else { return }
        product(op, n: A, k: I)
        if op == "experts" {
            add(op, ["add_low"], flops: 2 * R * A * O, bytes: 4 * R * A + size * (copies * O * A + 2 * R * O))
        } else {
            product(op, n: O, k: A)
        }
        product(back, n: A, k: O)
        product(back, n: I, k: A)
        gradient(m: A, n: I)
        gradient(m: O, n: A)
    }

    mutating func addExperts() {
        guard let experts = step.c.experts else { return }
        let E = Double(experts.expertCount), K = Double(experts.expertsPerToken), H = Double(step.c.hiddenSize)
        let F = Double(experts.innerSize), T = step.T, R = T * K
        for isSparse in step.c.isSparse where isSparse {
            let layer = ExpertsLayer(T: T, R: R, H: H, F: F, A: step.rank, E: min(E, R), size: step.size)
            add("route", ["route"], bytes: T * ((step.size + 4) * E + 8 * K))
            add("route", ["routing"], bytes: 12 * R)
            addForward(layer)
            addBackward(layer)
            addLibrary("experts", rows: R, copies: layer.E, I: H, O: 2 * F, A: step.rank)
            addLibrary("experts", rows: R, copies: layer.E, I: F, O: H, A: step.rank)
        }
    }

    private mutating func addForward(_ l: ExpertsLayer) {
        let op = "experts", (R, H, F, A) = (l.R, l.H, l.F, l.A)
        let up = l.tokens + l.up + l.b1 + 3 * l.inner + l.low, down = l.inner + l.down + l.b2 + l.low + l.rows
        add(op, ["lora_project"], ["GATHERS": 1], flops: 2 * R * A * H, bytes: A > 0 ? l.tokens + l.a1 + l.low : 0)
        add(op, ["grouped_gemm"], ["MODE": 0], flops: 2 * R * (H + A) * 2 * F, bytes: up)
        add(op, ["lora_project"], ["GATHERS": 0], flops: 2 * R * A * F, bytes: A > 0 ? l.inner + l.a2 + 2 * l.low : 0)
        add(op, ["grouped_gemm"], ["MODE": 1], flops: 2 * R * (F + A) * H, bytes: down)
        // With the adapters' skinny products in them.
        add(op, ["grouped_gemm_low"], ["MODE": 0], flops: 2 * R * ((H + A) * 2 * F + A * H), bytes: up + l.a1)
        add(op, ["grouped_gemm_low"], ["MODE": 1], flops: 2 * R * ((F + A) * H + A * F), bytes: down + l.a2)
        add(op, ["combine", "combine_rows"], bytes: l.rows + 2 * l.tokens + 8 * R)
    }

    private mutating func addBackward(_ l: ExpertsLayer) {
        let op = "expertsBackward", (R, H, F, A) = (l.R, l.H, l.F, l.A), wide = ["GATHERS": 0, "WIDTH": Int(2 * F)]
        let dact = l.tokens + l.down + l.a2 + 5 * l.inner + l.low
        add(op, ["lora_project"], ["GATHERS": 1], flops: 2 * R * A * H, bytes: A > 0 ? l.tokens + l.b2 + 2 * l.low : 0)
        add(op, ["grouped_gemm"], ["MODE": 2], flops: 2 * R * (H + A) * F, bytes: dact)
        add(op, ["grouped_gemm_low"], ["MODE": 2], flops: 2 * R * ((H + A) * F + A * H), bytes: dact + l.b2)
        add(op, ["lora_project"], wide, flops: 4 * R * A * F, bytes: A > 0 ? 2 * l.inner + l.b1 + l.low : 0)
        add(
            op, ["grouped_gemm_dx", "grouped_gemm"], ["MODE": 3], flops: 2 * R * (2 * F + A) * H,
            bytes: 2 * l.inner + l.up + l.a1 + l.low + l.rows)
        add(op, ["combine_backward"], bytes: l.rows + l.tokens + 12 * R)
        guard A > 0 else { return }
        // q1 and the gradient of B1 together.
        add(op, ["lora_backward"], flops: 8 * R * A * F, bytes: 2 * l.inner + 2 * l.low + l.b1 + l.gradient(2 * F))
        for (gathers, outputMajor, width) in [(1, 0, H), (0, 0, F), (1, 1, H), (0, 1, 2 * F)] {
            let source = gathers == 1 ? l.tokens : l.size * R * width
            add(
                op, ["lora_gradient"], ["GATHERS": gathers, "OUTPUT_MAJOR": outputMajor], flops: 2 * R * A * width,
                bytes: source + l.low + l.gradient(width))
        }
    }

    mutating func addLoss() {
        let T = step.T, H = Double(step.c.hiddenSize), V = Double(step.c.vocabularyCount), op = "crossEntropy"
        let logits = step.size * T * V, rows = step.size * T * H, head = step.size * V * H, flops = 2 * T * H * V
        add(op, ["cuBLASLt"], ["n": Int(V), "k": Int(H)], flops: flops, bytes: rows + head + logits)
        add(op, ["cross_entropy"], bytes: 2 * logits)
        add(op, ["cuBLASLt"], ["n": Int(H), "k": Int(V)], flops: flops, bytes: rows + head + logits)
        guard step.trainsWeights else { return }
        add(op, ["cuBLASLt"], ["m": Int(V), "n": Int(H)], flops: flops, bytes: rows + logits + 4 * V * H)
    }
}

/// Bytes of what a layer's experts read and write; E of them have rows.
private struct ExpertsLayer {
    let T, R, H, F, A, E, size: Double

    /// Rows of tokens; routed rows of either width, and of the rank.
    var tokens: Double { size * T * H }
    var rows: Double { size * R * H }
    var inner: Double { size * R * F }
    var low: Double { size * R * A }
    /// The weights of all experts.
    var up: Double { size * E * 2 * F * H }
    var down: Double { size * E * F * H }
    /// The adapters'.
    var a1: Double { size * E * A * H }
    var b1: Double { size * E * A * 2 * F }
    var a2: Double { size * E * A * F }
    var b2: Double { size * E * A * H }
    /// Of an adapter's factor, in float32.
    func gradient(_ width: Double) -> Double { 4 * E * A * width }
}
