internal import MartletCPU
internal import MartletCUDA
internal import MartletCore
internal import MartletModel

/// Whether this machine can train: its facts, and the checks it passes.
public struct Doctor: Sendable, CustomStringConvertible {
    /// One thing looked at.
    public struct Check: Sendable, Equatable {
        /// What was looked at.
        public var name: String
        /// Whether it is as it should be.
        public var isSound: Bool
        /// What was found.
        public var detail: String
        /// What to do, where something is wrong or could be better.
        public var advice: String?
    }

    /// In the order of looking.
    public var checks: [Check]
    /// Whether everything needed is as it should be.
    public var isSound: Bool { checks.allSatisfy(\.isSound) }

    /// Looks at the machine; `folder` is where a file is written to try the disk.
    /// With `onlyGPU` nothing but the GPU; with `ops`, which may be cases, nothing but the arithmetic of these.
    public static func examine(
        folder: String = ".", onlyGPU: Bool = false, ops: [String] = [], progress: (Check) -> Void = { _ in }
    ) throws(MartletError) -> Doctor {
        var doctor = Doctor(checks: [])
        let cases = try Parity.cases(named: ops)
        let arithmetic = [{ products(cases) }, { threads(cases) }]
        // Attention alone has sums that may go without an order.
        let attention = cases.filter { $0.op == "attention" }
        var onGPU = [{ gpuInHalf(cases) }, { gpuInFloat32(cases) }]
        let cut = cases.filter(\.cutsTiles)
        if !cut.isEmpty { onGPU.insert({ gpuInEveryTile(cut) }, at: 0) }
        if !attention.isEmpty { onGPU.append { gpuInAnyOrder(attention) } }
        var general: [() -> Check] = [machine, matrixProduct, { disk(folder) }]
        general += arithmetic + [fullGradients, adapterGradients]
        var gpuChecks = [gpu] + (hasGPU ? [tiles] + onGPU + [gpuGradients, gpuPlaces] : [])
        if !ops.isEmpty { (general, gpuChecks) = (arithmetic, [gpu] + (hasGPU ? onGPU : [])) }
        for examination in onlyGPU ? gpuChecks : general + gpuChecks {
            let check = examination()
            doctor.checks.append(check)
            progress(check)
        }
        return doctor
    }

    // MARK: The machine

    private static func machine() -> Check {
        let total = ProcessMemory.machineByteCount, available = ProcessMemory.availableByteCount
        let model = lines(of: "/proc/cpuinfo").first { $0.hasPrefix("model name") }?.split(separator: ":").last
        let isTight = available < 512 << 20
        return Check(
            name: "machine", isSound: !isTight,
            detail: "\(ProcessMemory.processorCount) processors\(model.map { " (\($0.drop { $0 == " " }))" } ?? ""), "
                + "\(formatBytes(available)) of \(formatBytes(total)) free",
            advice: isTight ? "close other programs: less than 512 MiB are free" : nil)
    }

    private static func matrixProduct() -> Check {
        let backend = CPUBackend()
        return Check(
            name: "matrix product", isSound: true, detail: backend.name,
            advice: Arithmetic.available.count > 1
                ? nil : "training works, but several times slower; get OpenBLAS: apt-get install libopenblas0")
    }

    /// Writes a file, flushes it, reads it back.
    package static func disk(_ folder: String) -> Check {
        let path = FileSystem.join(folder, ".martlet-doctor-\(UInt32.random(in: 0 ... .max))")
        defer { try? FileSystem.remove(path) }
        let piece = (0..<(1 << 16)).map { UInt8(truncatingIfNeeded: $0 &* 40503 >> 9) }, pieces = 1024
        func finding(_ isSound: Bool, _ detail: String, _ advice: String? = nil) -> Check {
            Check(name: "disk", isSound: isSound, detail: detail, advice: advice)
        }
        do throws(MartletError) {
            let watch = Stopwatch(), file = try AtomicFile(path)
            for _ in 0..<pieces { try file.write(piece) }
            try file.commit()
            let seconds = watch.seconds
            guard try isSame(path, piece, pieces) else {
                return finding(
                    false, "\(folder): 64 MiB written there read back as something else",
                    "do not use this disk; `dmesg` shows its errors")
            }
            return finding(true, "\(folder): 64 MiB written, flushed and read back, \(fixed(64 / seconds, 0)) MiB/s")
        } catch {
            return finding(false, "\(error.location ?? folder): \(error.reason ?? error.problem)", error.remedy)
        }
    }

    private static func isSame(_ path: String, _ piece: [UInt8], _ pieces: Int) throws(MartletError) -> Bool {
        let bytes = try FileSystem.read(path)
        guard bytes.count == piece.count * pieces else { return false }
        return (0..<pieces).allSatisfy { Array(bytes[$0 * piece.count..<($0 + 1) * piece.count]) == piece }
    }

    // MARK: The arithmetic

    /// The fast arithmetic against plain Swift.
    private static func products(_ cases: [OpCase]) -> Check {
        parity(
            "ops with fast loops against plain ones", CPUBackend(), with: CPUBackend(arithmetic: .plain), cases: cases)
    }

    private static func threads(_ cases: [OpCase]) -> Check {
        parity(
            "ops with all threads against one, same numbers", CPUBackend(), with: CPUBackend(threads: 1), tolerance: 0,
            cases: cases)
    }

    /// Every op, forward and backward, on a backend and on one to hold it against. Without a `tolerance` that of the
    /// backends' dtypes counts.
    package static func parity(
        _ name: String, _ backend: any Backend, with reference: any Backend, tolerance: Double? = nil,
        cases: [OpCase] = Parity.cases
    ) -> Check {
        examine(name, advice: backend is CUDABackend ? gpuAdvice : cpuAdvice) { () throws(MartletError) in
            let results = try Parity.compare(backend, with: reference, tolerance: tolerance, cases: cases)
            let wrong = results.filter { !$0.isSound }, worst = results.max { $0.error < $1.error }
            let all = "\(results.count) results of \(Set(results.map(\.op)).count) cases"
            guard wrong.isEmpty else {
                return (
                    false,
                    "\(wrong.count) of \(all) are wrong: \(wrong.prefix(12).map(\.description).joined(separator: "; "))"
                )
            }
            let place = worst.map { $0.error > 0 ? " (\($0.op), \($0.result))" : "" } ?? ""
            return (true, "\(all), \(shortest(worst?.error ?? 0)) apart at most" + place)
        }
    }

    // MARK: The GPU

    private static var hasGPU: Bool { (try? CUDABackend()) != nil }

    /// What there is, and what a run with `device: auto` takes; no GPU is no fault.
    private static func gpu() -> Check {
        do throws(MartletError) {
            let backend = try CUDABackend()
            return Check(
                name: "GPU", isSound: true, detail: backend.description, advice: cudnnAdvice(backend.attentionRefusal))
        } catch {
            if error.isInEnvironment {
                return Check(name: "GPU", isSound: false, detail: "\(error)", advice: error.remedy)
            }
            return Check(
                name: "GPU", isSound: true,
                detail: "none that Martlet can use: \(error.problem); training runs on the CPU",
                advice: error.remedy)
        }
    }

    private static func gpuInHalf(_ cases: [OpCase]) -> Check {
        gpuCheck(cases) { "ops on the GPU in \($0 == .float16 ? "float16" : "bfloat16") against the CPU" }
    }

    private static func gpuInAnyOrder(_ cases: [OpCase]) -> Check {
        gpuCheck(cases, isDeterministic: false) { _ in "attention on the GPU with 'deterministic: false'" }
    }

    /// How kernels are cut changes no number: every candidate against the usual one.
    private static func gpuInEveryTile(_ cases: [OpCase]) -> Check {
        examine("kernels in every tile, same numbers", advice: gpuAdvice) { () throws(MartletError) in
            let usual = try CUDABackend(tile: 0)
            var results: [ParityResult] = []
            for tile in 1..<usual.tileCount {
                results += try Parity.compare(try CUDABackend(tile: tile), with: usual, tolerance: 0, cases: cases)
            }
            let wrong = results.filter { !$0.isSound }
            let all = "\(results.count) results in \(usual.tileCount - 1) tiles beside the usual ones"
            guard !wrong.isEmpty else { return (true, all) }
            return (
                false, "\(wrong.count) of \(all) differ: \(wrong.prefix(12).map(\.description).joined(separator: "; "))"
            )
        }
    }

    /// What was tuned on this GPU.
    private static func tiles() -> Check {
        examine("tiles", advice: gpuAdvice) { () throws(MartletError) in
            (true, try CUDABackend().tuned.joined(separator: "\n       "))
        }
    }

    private static func gpuInFloat32(_ cases: [OpCase]) -> Check {
        gpuCheck(cases, inFloat32: true) { _ in "ops on the GPU in float32 against the CPU" }
    }

    private static func gpuCheck(
        _ cases: [OpCase], inFloat32: Bool = false, isDeterministic: Bool = true, named name: (DType) -> String
    ) -> Check {
        do throws(MartletError) {
            let backend = try CUDABackend(inFloat32: inFloat32, isDeterministic: isDeterministic)
            var check = parity(name(backend.computeDType), backend, with: CPUBackend(), cases: cases)
            if check.isSound { check.advice = cudnnAdvice(backend.attentionRefusal) }
            return check
        } catch {
            return Check(name: "ops on the GPU", isSound: false, detail: "\(error)", advice: error.remedy)
        }
    }

    /// Why attention is slower than it could be.
    private static func cudnnAdvice(_ refusal: MartletError?) -> String? {
        refusal.map { "attention by our own kernels, not by cuDNN: \($0)" }
    }

    private static func gpuGradients() -> Check {
        let name = "gradients of adapters on the GPU, float32, against differences of the loss"
        return examine(name, advice: gpuAdvice) { () throws(MartletError) in
            try Patient(backend: try CUDABackend(inFloat32: true)).gradientVerdict(
                ModelSettings(.lora, adapter: LoRASettings(rank: 3, alpha: 6)))
        }
    }

    private static func gpuPlaces() -> Check {
        examine("training on the GPU with all that can wait in host memory there", advice: gpuAdvice) {
            () throws(MartletError) in
            try Patient(backend: try CUDABackend()).placesVerdict()
        }
    }

    private static func fullGradients() -> Check {
        examine("gradients of every weight") { () throws(MartletError) in
            var settings = ModelSettings(.full)
            settings.trainsRouter = true
            return try Patient().gradientVerdict(settings)
        }
    }

    private static func adapterGradients() -> Check {
        examine("gradients of adapters") { () throws(MartletError) in
            try Patient().gradientVerdict(ModelSettings(.lora, adapter: LoRASettings(rank: 3, alpha: 6)))
        }
    }

    private static let cpuAdvice = "do not train here: numbers come out wrong. Report this with the processor's name"
    private static let gpuAdvice =
        "do not train on this GPU: numbers come out wrong. Report this with all of this output, which names the GPU "
        + "and its driver; until then train with 'device: cpu'"

    private static func examine(
        _ name: String, advice: String = cpuAdvice, _ body: () throws(MartletError) -> (isSound: Bool, detail: String)
    ) -> Check {
        do throws(MartletError) {
            let (isSound, detail) = try body()
            return Check(name: name, isSound: isSound, detail: detail, advice: isSound ? nil : advice)
        } catch {
            return Check(name: name, isSound: false, detail: "\(error)", advice: error.remedy)
        }
    }

    // MARK: Results

    /// The result for machines.
    public var json: String {
        let object: JSON = [
            "ok": .bool(isSound), "version": .string(martletVersion),
            "checks": .array(
                checks.map {
                    [
                        "name": .string($0.name), "ok": .bool($0.isSound), "detail": .string($0.detail),
                        "advice": $0.advice.map(JSON.string) ?? .null,
                    ]
                }),
        ]
        return object.text()
    }

    /// The result for people.
    public var description: String { checks.map(\.description).joined(separator: "\n") }
}

extension Doctor.Check: CustomStringConvertible {
    /// One line, and one of advice.
    public var description: String {
        "\(isSound ? "ok    " : "BROKEN") \(name): \(detail)" + (advice.map { "\n       -> \($0)" } ?? "")
    }
}

extension OpCase {
    /// Whether it runs kernels that have a choice of tiles, several of each, whole and not.
    fileprivate var cutsTiles: Bool {
        switch op {
        case "attention": self["T"] > 256 && self["D"] % 64 == 0
        case "experts": self["T"] > 256 && self["A"] == 16 && self["H"] == 200
        default: false
        }
    }
}

func shortest(_ value: Double) -> String {
    guard value > 0, value < 0.001 else { return fixed(value, 4) }
    var exponent = 0, mantissa = value
    while mantissa < 1 { (mantissa, exponent) = (mantissa * 10, exponent - 1) }
    return "\(fixed(mantissa, 1))e\(exponent)"
}
