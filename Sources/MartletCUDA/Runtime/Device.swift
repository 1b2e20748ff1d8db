internal import Dispatch
internal import MartletCore

/// One GPU: its context, its stream, its compiled kernels, and the first thing that went wrong on it.
///
/// Everything is queued on one stream, so ops follow each other in the order in which they are called. An error is kept
/// in `failure`; from then on nothing is launched, and `CUDABackend.finish` throws it.
final class Device {
    let driver: Driver
    let compiler: Compiler
    let name: String
    /// "0000:3B:00.0": by which other libraries of NVIDIA's know the GPU.
    let busID: String
    /// What kernels are compiled and ways chosen for: the GPU's own, unless it stands in for another.
    let architecture: Architecture
    let multiprocessorCount: Int
    /// Whether memory of the host that is pinned where it lies has its own address here.
    let pinsInPlace: Bool
    let totalByteCount: Int
    let driverVersion: Int
    let stream: Driver.Pointer
    private let context: Driver.Pointer
    private(set) var failure: MartletError?
    /// Kernels launched and library calls made so far.
    var launchCount = 0
    var profile: Profile?

    /// A form of the kernels that compute-sanitizer's racecheck can follow, slower (sm90.cuh).
    static let racecheck = KernelDefine("RACECHECK", 1)

    /// What every kernel is compiled with.
    private let everyDefine: [KernelDefine]
    private let cache: KernelCache
    private var modules: [KernelVariant: Driver.Pointer] = [:]
    private var kernels: [KernelKey: Kernel] = [:]
    /// What a rehearsal has asked for; nil outside of one.
    private var rehearsed: Set<KernelVariant>?
    private let compiling = DispatchGroup()

    private struct KernelKey: Hashable {
        var module: KernelVariant
        var entry: String
    }

    convenience init(index: Int = 0, cache: KernelCache = .standard) throws(MartletError) {
        try self.init(Driver(), Compiler(), index: index, cache: cache)
    }

    init(_ driver: Driver, _ compiler: Compiler, index: Int, cache: KernelCache) throws(MartletError) {
        self.driver = driver
        self.compiler = compiler
        self.cache = cache
        everyDefine = try isOn("MARTLET_RACECHECK", usually: false) ? [Device.racecheck] : []
        var count: Int32 = 0
        _ = driver.deviceGetCount(&count)
        guard index < count else {
            throw MartletError(
                "there is no GPU \(index)", because: "the NVIDIA driver sees \(count)",
                fix: "check `nvidia-smi` and CUDA_VISIBLE_DEVICES; or train on the CPU with 'device: cpu'")
        }
        var device: Int32 = 0, context: Driver.Pointer = nil, stream: Driver.Pointer = nil
        var results = [driver.deviceGet(&device, Int32(index)), driver.primaryContextRetain(&context, device)]
        results.append(driver.contextSetCurrent(context))
        // No kernel calls itself, so a smaller stack than 1 KiB a thread will do: 198 MiB less on an H200.
        let stackSize: Int32 = 0
        _ = driver.contextSetLimit(stackSize, 256)
        let nonBlocking: UInt32 = 1
        results.append(driver.streamCreate(&stream, nonBlocking))
        if let bad = results.first(where: { $0 != 0 }) {
            throw MartletError(
                "GPU \(index) cannot be used", because: driver.text(of: bad),
                fix: "check `nvidia-smi`: another process may hold the GPU exclusively")
        }
        self.stream = stream
        self.context = context
        func attribute(_ number: Int32) -> Int {
            var value: Int32 = 0
            _ = driver.deviceGetAttribute(&value, number, device)
            return Int(value)
        }
        let own = attribute(75) * 10 + attribute(76)
        architecture = try Architecture.standIn(on: own) ?? Architecture(capability: own)
        multiprocessorCount = attribute(16)
        pinsInPlace = attribute(91) == 1
        var label = [CChar](repeating: 0, count: 256), bytes = 0, version: Int32 = 0
        _ = driver.deviceGetName(&label, 255, device)
        _ = driver.deviceTotalMem(&bytes, device)
        _ = driver.driverGetVersion(&version)
        name = Device.text(label)
        label = [CChar](repeating: 0, count: 256)
        _ = driver.deviceGetPCIBusId?(&label, 255, device)
        busID = Device.text(label)
        totalByteCount = bytes
        driverVersion = Int(version)
        guard own >= 75 else {
            throw MartletError(
                "\(name) is too old", because: "its compute capability is \(own / 10).\(own % 10)",
                fix: "Martlet's kernels need 7.5 (Turing) or newer; train on the CPU with 'device: cpu'")
        }
    }

    private static func text(_ label: [CChar]) -> String {
        String(decoding: label.map(UInt8.init(bitPattern:)).prefix { $0 != 0 }, as: UTF8.self)
    }

    // NVRTC does not take it well when the process ends meanwhile.
    deinit { finishCompiling() }

    /// Whether nothing is launched or copied: in a rehearsal, or after an error.
    var isIdle: Bool { isRehearsing || failure != nil }
    var isRehearsing: Bool { rehearsed != nil }

    /// 90 for compute capability 9.0.
    var capability: Int { architecture.capability }

    /// Lets libraries work for this GPU on the thread that calls.
    func makeCurrent() { _ = driver.contextSetCurrent(context) }

    // MARK: Errors

    /// Keeps the first error.
    func fail(_ error: MartletError) { if failure == nil { failure = error } }

    /// Keeps the driver's error, if it is one.
    func check(_ result: Driver.Result, _ what: @autoclosure () -> String) {
        guard result != 0, failure == nil else { return }
        let fix =
            switch result {
            case 2: "another program uses the GPU's memory (`nvidia-smi`): end it, or lower 'memory_limit'"
            case 720: "some kernels need all of the GPU's multiprocessors at once: run without MPS, or with all of them"
            default: "run `martlet doctor`, and report this with its output"
            }
        failure = MartletError("the GPU reports an error", in: what(), because: driver.text(of: result), fix: fix)
    }

    func takeFailure() -> MartletError? {
        defer { failure = nil }
        return failure
    }

    // MARK: Kernels

    /// The kernel `entry` of `file`, compiled or from the cache. Dynamic shared memory is part of the kernel.
    func kernel(_ file: String, _ entry: String, _ defines: [KernelDefine] = [], sharedBytes: Int = 0) -> Kernel? {
        guard failure == nil else { return nil }
        let key = KernelKey(module: KernelVariant(file, everyDefine + defines), entry: entry)
        guard !isRehearsing else {
            rehearsed?.insert(key.module)
            return nil
        }
        if let kernel = kernels[key] { return kernel }
        do throws(MartletError) {
            let kernel = try load(key, sharedBytes)
            kernels[key] = kernel
            return kernel
        } catch {
            fail(error)
            return nil
        }
    }

    /// The kernels that `body` would launch; in it they are not there, and nothing is launched or copied.
    func rehearse(_ body: () -> Void) -> Set<KernelVariant> {
        rehearsed = []
        defer { rehearsed = nil }
        body()
        return rehearsed ?? []
    }

    /// Compiles what the cache does not have, on all processors. What cannot be compiled fails again when it is loaded.
    func compile(_ variants: [KernelVariant]) {
        beginCompiling(variants)
        finishCompiling()
    }

    /// The same behind what follows.
    func beginCompiling(_ variants: [KernelVariant]) {
        let (cache, compiler, architecture) = (cache, compiler, architecture)
        DispatchQueue.global().async(group: compiling) {
            DispatchQueue.concurrentPerform(iterations: variants.count) { i in
                _ = try? cache.image(of: variants[i], for: architecture, by: compiler)
            }
        }
    }

    func finishCompiling() { compiling.wait() }

    private func load(_ key: KernelKey, _ sharedBytes: Int) throws(MartletError) -> Kernel {
        if modules[key.module] == nil { modules[key.module] = try loadModule(key.module) }
        let module = modules[key.module] ?? nil
        var function: Driver.Pointer = nil
        check(driver.moduleGetFunction(&function, module, key.entry), "\(key.module.file), \(key.entry)")
        if sharedBytes > 48 << 10 {
            let maximumDynamicSharedBytes: Int32 = 8
            check(
                driver.functionSetAttribute(function, maximumDynamicSharedBytes, Int32(sharedBytes)),
                "\(key.entry) with \(sharedBytes) bytes of shared memory")
        }
        if let failure { throw failure }
        let constants = key.module.defines.map { " \($0.name)=\($0.value)" }.joined()
        return Kernel(name: key.entry + constants, function: function, sharedBytes: sharedBytes)
    }

    private func loadModule(_ variant: KernelVariant) throws(MartletError) -> Driver.Pointer {
        let image = try cache.image(of: variant, for: architecture, by: compiler)
        var module: Driver.Pointer = nil
        check(driver.moduleLoadData(&module, image), "loading \(variant.file)")
        if let failure { throw failure }
        return module
    }

    /// Queues a launch; `together` (on Hopper): one that is refused if not all blocks can run at once.
    func launch(
        _ kernel: Kernel?, _ grid: Grid, block: Int, together: Bool = false, _ arguments: [KernelArgument]
    ) {
        guard let kernel, failure == nil, grid.x > 0, grid.y > 0, grid.z > 0 else { return }
        launchCount += 1
        timedKernel(kernel.name) { start(kernel, grid, block, together, arguments) }
    }

    private func start(
        _ kernel: Kernel, _ grid: Grid, _ block: Int, _ together: Bool, _ arguments: [KernelArgument]
    ) {
        // One slot of 128 bytes an argument, on the stack.
        let slot = 128
        withUnsafeTemporaryAllocation(byteCount: arguments.count * slot, alignment: 64) { memory in
            withUnsafeTemporaryAllocation(of: UnsafeMutableRawPointer?.self, capacity: arguments.count) { pointers in
                for (i, argument) in arguments.enumerated() {
                    guard let place = memory.baseAddress.map({ $0 + i * slot }) else { return }
                    pointers[i] = place
                    switch argument {
                    case .tensor(let tensor): place.storeBytes(of: tensor.address, as: UInt.self)
                    case .optional(let tensor): place.storeBytes(of: tensor?.address ?? 0, as: UInt.self)
                    case .address(let address): place.storeBytes(of: address, as: UInt.self)
                    case .int(let value): place.storeBytes(of: Int32(truncatingIfNeeded: value), as: Int32.self)
                    case .long(let value): place.storeBytes(of: value, as: Int.self)
                    case .float(let value): place.storeBytes(of: value, as: Float.self)
                    case .map(let map): place.storeBytes(of: map.words, as: SIMD16<UInt64>.self)
                    case .block(let words): place.storeBytes(of: words, as: SIMD16<UInt64>.self)
                    }
                }
                let result = LaunchAttribute.list.withUnsafeBufferPointer { attributes in
                    var configuration = LaunchConfiguration(
                        grid: (UInt32(grid.x), UInt32(grid.y), UInt32(grid.z)), block: (UInt32(block), 1, 1),
                        sharedBytes: UInt32(kernel.sharedBytes), stream: stream, attributes: attributes.baseAddress,
                        attributeCount: architecture.overlapsKernels ? (together ? 2 : 1) : 0)
                    return driver.launchKernel(&configuration, kernel.function, pointers.baseAddress, nil)
                }
                check(result, "a launch of \(grid.x) x \(grid.y) x \(grid.z) blocks of \(block) threads")
            }
        }
    }

    /// Waits for everything queued.
    func synchronize() {
        guard !isIdle else { return }
        check(driver.streamSynchronize(stream), "the work queued so far")
    }

    // MARK: Time

    /// A point in the stream.
    func mark() -> Driver.Pointer {
        var event: Driver.Pointer = nil
        check(driver.eventCreate(&event, 0), "an event")
        check(driver.eventRecord(event, stream), "an event")
        return event
    }

    /// Milliseconds between two marks, which are used up. Waits.
    func milliseconds(from start: Driver.Pointer, to end: Driver.Pointer) -> Double {
        var time: Float = 0
        check(driver.eventSynchronize(end), "an event")
        check(driver.eventElapsedTime(&time, start, end), "an event")
        _ = driver.eventDestroy(start)
        _ = driver.eventDestroy(end)
        return Double(time)
    }
}
