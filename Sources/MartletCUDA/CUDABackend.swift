package import MartletCore

/// Training on one NVIDIA GPU: bfloat16 activations and frozen weights (float16 on a GPU without bfloat16), float32 trained
/// parameters and sums.
///
/// Every op queues its work on the device's stream and returns. Reductions have a fixed order: the same inputs give the
/// same bytes, unless a faster attention was asked for that has none.
package final class CUDABackend: Backend {
    package let computeDType: DType
    package let name: String
    package let preferredTileTokens = 16384
    package let fetchesWeightsSlowly = true
    package let keepsLowProducts = true
    /// Whether the same inputs have to give the same bytes.
    let wantsOrder: Bool

    let device: Device
    /// Where not, dense products are by a plain kernel of our own, attention without cuDNN: slow, for programs that cannot bear
    /// the libraries' kernels (compute-sanitizer's racecheck).
    let usesLibraries: Bool
    let blas: BLAS
    let staging: Staging
    /// How experts are computed where nothing stands against it.
    let expertsPath: ExpertsPath
    /// How attention is computed where it can be; else by the next.
    let attentionPath: AttentionPath
    let tables: TensorTables
    let attentionTables: AttentionTables
    let sideCopies: SideCopies
    let tiles = Tiles()
    let tunesTiles: Bool
    /// How the tiles in force were found; nil where no kernel with a choice is worth it.
    package internal(set) var tileReport: TileReport?

    /// Loaded at the first need; nil where cuDNN is missing or not for this GPU.
    private(set) lazy var cudnnAttention = makeAttention()
    private var hasAskedForCuDNN = false
    private var missingAttention: MartletError?
    /// What `reserveScratch` carved; every op lays its temporaries out here anew.
    var scratchMemory: Tensor?
    /// What that was planned with.
    var room = ScratchRoom.usual

    /// In the GPU's 16-bit floats, or, for checking, in float32. `tile`, for checking too: our own portable kernels, and that
    /// candidate of each.
    package init(
        index: Int = 0, inFloat32: Bool = false, isDeterministic: Bool = true, tile: Int? = nil
    ) throws(MartletError) {
        wantsOrder = isDeterministic
        device = try Device(index: index)
        computeDType = inFloat32 ? .float32 : device.architecture.half
        usesLibraries = try isOn("MARTLET_LIBRARIES", usually: true)
        blas = try BLAS(device, isUsed: usesLibraries)
        staging = try Staging(device)
        expertsPath = tile != nil ? .portable : try CUDABackend.expertsPath(capability: device.capability)
        attentionPath = tile != nil ? .flash : try CUDABackend.attentionPath()
        tunesTiles = try isOn("MARTLET_TUNE", usually: true)
        tiles.forced = tile
        let role = device.architecture.isText ? " standing in for \(device.architecture.number)" : ""
        name = "\(device.name)\(role) (\(computeDType.shortName), experts: \(expertsPath.rawValue))"
        tables = TensorTables(staging)
        attentionTables = AttentionTables(staging)
        sideCopies = try SideCopies(device)
        if environment("MARTLET_ATTENTION") == AttentionPath.cudnn.rawValue, cudnnAttention == nil,
            let error = missingAttention
        {
            throw MartletError(
                error.problem, in: "MARTLET_ATTENTION", because: error.reason,
                fix: error.remedy.map { $0 + "; or unset MARTLET_ATTENTION" } ?? "unset MARTLET_ATTENTION")
        }
        if environment("MARTLET_ATTENTION") == AttentionPath.hopper.rawValue, computeDType.isHalf,
            device.capability != 90
        {
            throw MartletError(
                "there is no such kernel for this GPU", in: "MARTLET_ATTENTION", because: "\(name) is not a Hopper",
                fix: "unset MARTLET_ATTENTION")
        }
    }

    /// cuDNN's attention, where it has a part in that of these shapes.
    func cudnnAttention(for shapes: ScratchShapes) -> CuDNNAttention? {
        hasHopperAttention(headSize: shapes.headSize) ? nil : cudnnAttention
    }

    private func makeAttention() -> CuDNNAttention? {
        hasAskedForCuDNN = true
        guard computeDType.isHalf, usesLibraries, attentionPath == .cudnn || attentionPath == .hopper else {
            return nil
        }
        do throws(MartletError) {
            return try CuDNNAttention(device, staging, isDeterministic: wantsOrder)
        } catch {
            missingAttention = error
            return nil
        }
    }

    /// Why cuDNN did not compute attention, if it did not somewhere.
    package var attentionRefusal: MartletError? { cudnnAttention?.plans.refusal ?? missingAttention }

    package func remarks(on shapes: ScratchShapes) -> [String] {
        // Elsewhere our own kernels are what there is.
        let isSlow =
            device.capability == 90 && shapes.queryHeads > 0 && !hasHopperAttention(headSize: shapes.headSize)
            && cudnnAttention == nil
        let attention = isSlow ? missingAttention : nil
        return [
            halfRemark(trains: shapes.trains), expertsRemark(on: shapes), flashRemark(on: shapes),
            attention.map { "attention is computed by our own kernels, about half as fast as cuDNN's: \($0.problem)" },
            orderRemark(on: shapes),
        ].compactMap { $0 }
    }

    private func halfRemark(trains: Bool) -> String? {
        guard computeDType == .float16 else { return nil }
        return "activations are float16, since this GPU has no bfloat16: what is beyond 65504 is an error"
            + (trains ? ", and gradients are made at a loss scale" : "")
    }

    /// Whether the same inputs give the same bytes.
    package var isDeterministic: Bool { wantsOrder || cudnnAttention?.isDeterministic ?? true }

    /// An empty layout over the scratch memory, for one op.
    func scratch() -> Scratch { Scratch(scratchMemory) }

    /// 1 where activations have 16 bits: the kernels' `-DHALF`.
    var half: KernelDefine { KernelDefine("HALF", computeDType.isHalf ? 1 : 0) }

    /// GPU, driver, libraries, and the ways chosen.
    package var description: String {
        let version = device.driverVersion
        return "\(name), compute capability \(device.architecture.number), "
            + "\(device.multiprocessorCount) multiprocessors, \(formatBytes(device.totalByteCount)), driver for CUDA "
            + "\(version / 1000).\(version % 1000 / 10), \(device.compiler.version), \(blas.version), attention by "
            + (cudnnAttention?.cudnn.version ?? "our own kernels" + (attentionPath == .plain ? ", the plain ones" : ""))
            + (cudnnAttention != nil && hasHopperAttention(headSize: HopperBackward.headSize)
                ? " (by our own kernels where heads have 128)" : "")
    }

    /// Bytes of the GPU's memory in use, by this process or any other.
    package var usedByteCount: Int {
        var free = 0, total = 0
        device.check(device.driver.memoryInfo(&free, &total), "its memory")
        return total - free
    }

    /// Bytes that an arena may take: what is free, less room for kernels and libraries, which load at their first use.
    package var plannableByteCount: Int { max(0, device.totalByteCount - usedByteCount - 1 << 30) }

    /// Kernels are compiled behind what follows, up to the next `finish`. What puts a table on the device for its arguments is not
    /// rehearsed: attention (of which Hopper's own kernels are known), the optimizer.
    package func rehearse(_ body: () -> Void) {
        guard device.failure == nil else { return }
        device.beginCompiling(Array(device.rehearse(body)) + [KernelVariant("optimizer.cu")])
    }

    /// Waits for the device; throws the first error since the last call.
    package func finish() throws(MartletError) {
        device.finishCompiling()
        if hasAskedForCuDNN { cudnnAttention?.plans.finish() }
        device.synchronize()
        sideCopies.synchronize()
        if let failure = device.takeFailure() { throw failure }
    }
}
