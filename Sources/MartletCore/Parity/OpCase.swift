/// One op, forward and backward, on inputs made from a seed. It runs on any backend: against a formula in the tests,
/// against the CPU backend on a user's GPU.
///
/// Names tell what stands where: input `x` and its gradient, result `dx`; result `y` and its given gradient, input `dy`.
/// What an op adds to starts as the input of the result's name and ".start".
package struct OpCase: Sendable {
    package var name: String
    /// Extents by their letters in `Backend`, flags as 0 and 1.
    package var sizes: [String: Int]
    package var scalars: [String: Float]
    package var inputs: [String: [Float]]
    package var ids: [String: [Int32]]
    /// Results that are ids: near is not good enough for them.
    package var idResults: Set<String> = []
    private let body: @Sendable (OpCase, OpBench) -> [String: [Float]]

    package init(
        _ name: String, seed: UInt64, sizes: [String: Int], scalars: [String: Float] = [:], inputs: [String: Int],
        ids: [String: [Int32]] = [:], body: @escaping @Sendable (OpCase, OpBench) -> [String: [Float]]
    ) {
        self.name = name
        self.sizes = sizes
        self.scalars = scalars
        self.ids = ids
        self.body = body
        var stream = RandomStream(seed: seed)
        self.inputs = [:]
        for (input, count) in inputs.sorted(by: { $0.key < $1.key }) {
            self.inputs[input] = (0..<count).map { _ in stream.normal() }
        }
    }

    /// The op, as the name begins.
    package var op: String { String(name.prefix { $0 != " " }) }

    /// Whether the case's name begins with these words.
    func isNamed(_ words: String) -> Bool { name == words || name.hasPrefix(words + " ") }

    package subscript(size: String) -> Int { sizes[size, default: 0] }

    /// The values of an input, empty where the case has no such input.
    package func values(_ input: String) -> [Float] { inputs[input, default: []] }

    /// The results by name; ids come as floats.
    package func run(on backend: any Backend) throws(MartletError) -> (results: [String: [Float]], isContained: Bool) {
        var shapes = ScratchShapes()
        (shapes.tokens, shapes.hidden, shapes.vocabulary) = (self["T"], self["H"], self["V"])
        shapes.keyRows = self["U"]
        (shapes.queryHeads, shapes.keyValueHeads, shapes.headSize) = (self["Q"], self["G"], self["D"])
        (shapes.experts, shapes.expertsPerToken, shapes.expertInner) = (self["E"], self["K"], self["F"])
        (shapes.widest, shapes.rank) = (max(self["I"], self["O"]), self["A"])
        shapes.dropsOut = scalars["dropout", default: 0] > 0
        shapes.trainsWeights = inputs["dgateUp.start"] != nil
        let inputBytes = inputs.values.reduce(0) { $0 + roundUp(4 * $1.count, to: 256) + 1024 }
        let bench = try OpBench(backend, shapes: shapes, byteCount: 4 * inputBytes + 1 << 20)
        let results = body(self, bench)
        try backend.finish()
        return (results, bench.sentinelsAreIntact)
    }

    /// The same case as a step's first contribution: what stands in the gradients of parameters is no number.
    package var first: OpCase {
        var copy = self
        copy.name += " first"
        copy.sizes["first"] = 1
        return copy
    }

    package var accumulation: Accumulation { self["first"] == 1 ? .first : .later }

    /// The same case with inputs that bfloat16 holds exactly, so that backends of either dtype start from the same
    /// numbers.
    package var inBFloat16: OpCase { rounded(1) }

    /// The same with a quarter of that, so that no result comes near the 65504 at which float16 ends. It holds them exactly,
    /// but for those that are almost 0.
    package var inFloat16: OpCase { rounded(0.25) }

    private func rounded(_ scale: Float) -> OpCase {
        var copy = self
        copy.inputs = inputs.mapValues { $0.map { scale * Float(bfloat16Bits: $0.bfloat16Bits) } }
        return copy
    }

    // MARK: For bodies

    /// In the backend's compute dtype if none is given.
    package func tensor(_ input: String, _ shape: Shape, _ dtype: DType? = nil, in bench: OpBench) -> Tensor {
        bench.tensor(values(input), shape, dtype)
    }

    /// A parameter's gradient, nil where the case has no start of it.
    package func gradient(_ name: String, _ shape: Shape, in bench: OpBench) -> Tensor? {
        guard accumulation.adds || inputs["\(name).start"] == nil else { return bench.output(shape, .float32) }
        return optional("\(name).start", shape, .float32, in: bench)
    }

    /// The tensor, or nil where the case has no such input.
    package func optional(_ input: String, _ shape: Shape, _ dtype: DType? = nil, in bench: OpBench) -> Tensor? {
        inputs[input].map { bench.tensor($0, shape, dtype) }
    }
}
