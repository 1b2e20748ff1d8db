internal import MartletCPU
internal import MartletCore

/// The time of every op of the backend at named shapes, as shares of what this machine can do at best.
public struct OpBenchmark: Sendable {
    /// One op.
    public struct Row: Sendable, CustomStringConvertible {
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
        /// Share of the machine's own matrix product.
        public var shareOfPeak: Double
        /// Share of the machine's memory speed; the larger of the two tells how near the roof the op is.
        public var shareOfMemory: Double

        /// 10^9 operations a second.
        public var gigaflops: Double { flops / milliseconds / 1e6 }
        /// 10^9 bytes a second.
        public var gigabytes: Double { bytes / milliseconds / 1e6 }

        /// One line.
        public var description: String {
            let cells = [
                name.padded(to: 20), shape.padded(to: 36), fixed(milliseconds, 3).padded(to: 10, atEnd: true),
                fixed(gigaflops, 1).padded(to: 8, atEnd: true), fixed(gigabytes, 1).padded(to: 8, atEnd: true),
                "\(fixed(shareOfPeak * 100, 0))%".padded(to: 7, atEnd: true),
                "\(fixed(shareOfMemory * 100, 0))%".padded(to: 7, atEnd: true),
            ]
            return cells.joined(separator: " ")
        }
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

    /// Titles of a row's columns.
    public static let header =
        "op".padded(to: 20) + " " + "shape".padded(to: 36) + "         ms  GFLOP/s     GB/s   gemm%    mem%"

    /// The backend.
    public var backend: String
    /// GFLOP/s of its matrix product of 1024 cubed.
    public var peakGigaflops: Double
    /// GB/s of a vector addition, read and written bytes together.
    public var memoryGigabytes: Double
    /// One an op and shape.
    public var rows: [Row]

    /// Measures; `only` names ops to measure, all if empty.
    public static func run(
        shapes: Shapes = .wide, tokens: Int = 512, only: [String] = [], threads: Int? = nil,
        progress: (Row) -> Void = { _ in }
    ) throws(MartletError) -> OpBenchmark {
        guard (1...65536).contains(tokens) else {
            throw MartletError(
                "cannot measure \(tokens) tokens", in: "--tokens", because: "it must be 1 to 65536",
                fix: "give for example 512")
        }
        let backend = CPUBackend(threads: threads)
        let bench = try TimedOps(backend, OpSizes(shapes, tokens: tokens))
        for name in only where !bench.cases.contains(where: { $0.name == name }) {
            let names = bench.cases.map(\.name)
            throw MartletError(
                "there is no op '\(name)'", in: "--only",
                because: "the ops are \(Set(names).sorted().joined(separator: ", "))",
                fix: closestMatch(to: name, among: names).map { "did you mean '\($0)'?" } ?? "name one of them")
        }
        let (peak, memory) = try bench.peaks()
        var result = OpBenchmark(backend: backend.name, peakGigaflops: peak, memoryGigabytes: memory, rows: [])
        for op in bench.cases where only.isEmpty || only.contains(op.name) {
            let milliseconds = median(of: op.body)
            let row = Row(
                name: op.name, shape: op.shape, milliseconds: milliseconds, flops: op.flops, bytes: op.bytes,
                shareOfPeak: op.flops / milliseconds / 1e6 / peak, shareOfMemory: op.bytes / milliseconds / 1e6 / memory
            )
            result.rows.append(row)
            progress(row)
        }
        return result
    }

    /// What the shares are shares of.
    public var summary: String {
        "\(backend): matrix product \(fixed(peakGigaflops, 1)) GFLOP/s, memory \(fixed(memoryGigabytes, 1)) GB/s"
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
                        "share_of_gemm": .number($0.shareOfPeak), "share_of_memory": .number($0.shareOfMemory),
                    ]
                }),
        ]
        return object.text()
    }
}

extension String {
    fileprivate func padded(to width: Int, atEnd: Bool = false) -> String {
        let space = String(repeating: " ", count: max(0, width - count))
        return atEnd ? space + self : self + space
    }
}

/// Median milliseconds of a body and of waiting for what it asked for.
func medianFinished(_ backend: any Backend, _ body: () -> Void) throws(MartletError) -> Double {
    var failure: MartletError?
    let time = median {
        body()
        do throws(MartletError) { try backend.finish() } catch { failure = failure ?? error }
    }
    if let failure { throw failure }
    return time
}

/// Median milliseconds of a body: warmed up, at least five runs, at most about half a second.
func median(of body: () -> Void) -> Double {
    body()
    let whole = Stopwatch()
    var times: [Double] = []
    while times.count < 5 || (whole.seconds < 0.5 && times.count < 200) {
        let watch = Stopwatch()
        body()
        times.append(watch.seconds * 1000)
    }
    return max(times.sorted()[times.count / 2], 1e-6)
}
