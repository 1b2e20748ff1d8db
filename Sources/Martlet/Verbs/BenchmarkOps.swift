internal import MartletCUDA
internal import MartletCore

/// The time of every op of the backend at named shapes, as shares of what this machine can do at best.
public struct OpBenchmark: Sendable {
    /// One op.
    public struct Row: Sendable {
        /// The op, as the `Backend` protocol names it.
        public var name: String
        /// Its shapes.
        public var shape: String
        /// Median milliseconds.
        public var milliseconds: Double
        /// Floating-point operations that it cannot do without.
        public var flops: Double
        /// Bytes that it must move.
        public var bytes: Double

        /// 10^9 operations a second.
        public var gigaflops: Double { flops / milliseconds / 1e6 }
        /// 10^9 bytes a second.
        public var gigabytes: Double { bytes / milliseconds / 1e6 }
    }

    /// Sizes of a layer to measure at.
    public enum Shapes: String, Sendable, CaseIterable {
        /// 122 M parameters: hidden 512, 32 experts of 256.
        case wide
        /// The same parameters in 128 experts of 64.
        case fine
        /// A layer of Qwen3-30B-A3B: hidden 2048, 128 experts of 768.
        case qwen30b = "qwen3-30b-a3b"

        /// Layers of the whole model.
        public var layerCount: Int { self == .qwen30b ? 48 : 8 }
    }

    /// The backend.
    public var backend: String
    /// Whether a GPU's speeds are told, in TFLOP/s instead of GFLOP/s.
    public var isGPU: Bool
    /// GFLOP/s of a matrix product of this many rows and columns: 1024, on a GPU 8192.
    public var peakGigaflops: Double
    /// Rows and columns of that product.
    public var productSide: Int
    /// GB/s of a large copy or addition, read and written bytes together.
    public var memoryGigabytes: Double
    /// One an op and shape.
    public var rows: [Row] = []

    /// Measures; `only` names ops to measure, all if empty. `progress` gets the lines of a table as they come.
    public static func run(
        shapes: Shapes = .wide, tokens: Int = 512, only: [String] = [], compute: Compute = Compute(),
        progress: (String) -> Void = { _ in }
    ) throws(MartletError) -> OpBenchmark {
        guard (1...65536).contains(tokens) else {
            throw MartletError(
                "cannot measure \(tokens) tokens", in: "--tokens", because: "it must be 1 to 65536",
                fix: "give for example 512")
        }
        let backend = try compute.makeBackend(), sizes = OpSizes(shapes, tokens: tokens)
        let groups = try OpCases.groups(of: only, backend, sizes)
        let memory = try OpMemory(backend, sizes, for: groups)
        defer { withExtendedLifetime(memory) {} }
        var result = OpBenchmark(
            backend: backend.name, isGPU: backend is CUDABackend, peakGigaflops: try Roofs.gigaflops(of: backend),
            productSide: Roofs.productSide(of: backend), memoryGigabytes: try Roofs.gigabytes(of: backend))
        progress(result.summary)
        progress(result.header)
        let timer = OpTimer(backend: backend)
        for op in groups.flatMap({ $0(memory) }) where only.isEmpty || only.contains(op.name) {
            let row = Row(
                name: op.name, shape: op.shape, milliseconds: try timer.milliseconds(of: op), flops: op.flops,
                bytes: op.bytes)
            result.rows.append(row)
            progress(result.line(row))
        }
        return result
    }

    /// Share of the device's own matrix product.
    public func shareOfPeak(_ row: Row) -> Double { row.gigaflops / peakGigaflops }
    /// Share of the device's memory speed; the larger of the two tells how near the roof the op is.
    public func shareOfMemory(_ row: Row) -> Double { row.gigabytes / memoryGigabytes }

    private var unit: String { isGPU ? "TFLOP/s" : "GFLOP/s" }
    private func speed(_ gigaflops: Double) -> String { fixed(isGPU ? gigaflops / 1000 : gigaflops, 1) }

    /// What the shares are shares of.
    public var summary: String {
        "\(backend): matrix product of \(productSide) cubed \(speed(peakGigaflops)) \(unit), "
            + "memory \(fixed(memoryGigabytes, 1)) GB/s"
    }

    /// Titles of the columns.
    public var header: String { OpBenchmark.line(["op", "shape", "ms", unit, "GB/s", "product%", "memory%"]) }

    /// One line of the table.
    public func line(_ row: Row) -> String {
        OpBenchmark.line([
            row.name, row.shape, fixed(row.milliseconds, 4), speed(row.gigaflops), fixed(row.gigabytes, 1),
            "\(fixed(shareOfPeak(row) * 100, 0))%", "\(fixed(shareOfMemory(row) * 100, 0))%",
        ])
    }

    private static func line(_ cells: [String]) -> String {
        let widths = [18, 40, 10, 8, 8, 8, 8]
        return zip(cells, widths).enumerated().map { column, cell in
            cell.0.padded(to: cell.1, atEnd: column > 1)
        }.joined(separator: " ")
    }

    /// The result for machines.
    public var json: String {
        let object: JSON = [
            "backend": .string(backend), "peak_gflops": .number(peakGigaflops), "memory_gbps": .number(memoryGigabytes),
            "ops": .array(
                rows.map {
                    [
                        "op": .string($0.name), "shape": .string($0.shape), "ms": .number($0.milliseconds),
                        "gflops": .number($0.gigaflops), "gbps": .number($0.gigabytes),
                        "share_of_gemm": .number(shareOfPeak($0)), "share_of_memory": .number(shareOfMemory($0)),
                    ]
                }),
        ]
        return object.text()
    }
}

extension OpCases {
    /// The groups that hold ops of these names; all if there are none.
    fileprivate static func groups(
        of only: [String], _ backend: any Backend, _ sizes: OpSizes
    ) throws(MartletError) -> [(OpMemory) -> [TimedOp]] {
        let memory = OpMemory.measuring(backend, sizes)
        let known = groups.map { group in (group: group, names: Set(group(memory).map(\.name))) }
        let names = known.reduce(into: Set<String>()) { $0.formUnion($1.names) }.sorted()
        if let name = only.first(where: { !names.contains($0) }) {
            throw MartletError(
                "there is no op '\(name)'", in: "--only", because: "the ops are \(names.joined(separator: ", "))",
                fix: closestMatch(to: name, among: names).map { "did you mean '\($0)'?" } ?? "name one of them")
        }
        return known.filter { only.isEmpty || !$0.names.isDisjoint(with: only) }.map(\.group)
    }
}

extension String {
    fileprivate func padded(to width: Int, atEnd: Bool = false) -> String {
        let space = String(repeating: " ", count: max(0, width - count))
        return atEnd ? space + self : self + space
    }
}
