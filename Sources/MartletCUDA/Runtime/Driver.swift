internal import MartletCore

/// The functions of the CUDA driver that Martlet calls (CUDA Driver API; the names are the driver's, without `cu`).
struct Driver: Sendable {
    typealias Result = Int32
    typealias Pointer = OpaquePointer?

    let initialize: @convention(c) (UInt32) -> Result
    let driverGetVersion: @convention(c) (UnsafeMutablePointer<Int32>) -> Result
    let deviceGetCount: @convention(c) (UnsafeMutablePointer<Int32>) -> Result
    let deviceGet: @convention(c) (UnsafeMutablePointer<Int32>, Int32) -> Result
    let deviceGetName: @convention(c) (UnsafeMutablePointer<CChar>, Int32, Int32) -> Result
    let deviceGetAttribute: @convention(c) (UnsafeMutablePointer<Int32>, Int32, Int32) -> Result
    let deviceTotalMem: @convention(c) (UnsafeMutablePointer<Int>, Int32) -> Result
    /// text, room for it, device
    let deviceGetPCIBusId: (@convention(c) (UnsafeMutablePointer<CChar>, Int32, Int32) -> Result)?
    let primaryContextRetain: @convention(c) (UnsafeMutablePointer<Pointer>, Int32) -> Result
    let contextSetCurrent: @convention(c) (Pointer) -> Result
    let contextSetLimit: @convention(c) (Int32, Int) -> Result
    let memoryInfo: @convention(c) (UnsafeMutablePointer<Int>, UnsafeMutablePointer<Int>) -> Result
    let memoryAllocate: @convention(c) (UnsafeMutablePointer<UInt>, Int) -> Result
    let memoryFree: @convention(c) (UInt) -> Result
    let hostAllocate: @convention(c) (UnsafeMutablePointer<UnsafeMutableRawPointer?>, Int, UInt32) -> Result
    let hostFree: @convention(c) (UnsafeMutableRawPointer?) -> Result
    /// Memory that is there already: address, bytes, flags.
    let hostRegister: (@convention(c) (UnsafeMutableRawPointer, Int, UInt32) -> Result)?
    let hostUnregister: (@convention(c) (UnsafeMutableRawPointer) -> Result)?
    /// Between any two places; the driver knows where addresses lie.
    let copy: @convention(c) (UInt, UInt, Int, Pointer) -> Result
    let streamCreate: @convention(c) (UnsafeMutablePointer<Pointer>, UInt32) -> Result
    let streamSynchronize: @convention(c) (Pointer) -> Result
    let streamWaitEvent: @convention(c) (Pointer, Pointer, UInt32) -> Result
    let eventCreate: @convention(c) (UnsafeMutablePointer<Pointer>, UInt32) -> Result
    let eventRecord: @convention(c) (Pointer, Pointer) -> Result
    let eventSynchronize: @convention(c) (Pointer) -> Result
    let eventElapsedTime: @convention(c) (UnsafeMutablePointer<Float>, Pointer, Pointer) -> Result
    let eventDestroy: @convention(c) (Pointer) -> Result
    let moduleLoadData: @convention(c) (UnsafeMutablePointer<Pointer>, UnsafeRawPointer) -> Result
    let moduleGetFunction: @convention(c) (UnsafeMutablePointer<Pointer>, Pointer, UnsafePointer<CChar>) -> Result
    let functionSetAttribute: @convention(c) (Pointer, Int32, Int32) -> Result
    /// `LaunchConfiguration`, function, arguments, extra
    let launchKernel:
        @convention(c) (
            UnsafeRawPointer, Pointer, UnsafeMutablePointer<UnsafeMutableRawPointer?>?, UnsafeMutableRawPointer?
        ) -> Result
    /// map, dtype, rank, address, sizes, strides, box, element strides, interleave, swizzle, L2 promotion, fill
    let tensorMapEncodeTiled:
        (
            @convention(c) (
                UnsafeMutableRawPointer, Int32, UInt32, UInt, UnsafePointer<UInt64>, UnsafePointer<UInt64>,
                UnsafePointer<UInt32>, UnsafePointer<UInt32>, Int32, Int32, Int32, Int32
            ) -> Result
        )?
    let getErrorName: @convention(c) (Result, UnsafeMutablePointer<UnsafePointer<CChar>?>) -> Result
    let getErrorString: @convention(c) (Result, UnsafeMutablePointer<UnsafePointer<CChar>?>) -> Result
}

extension Driver {
    /// Loads libcuda, which comes with the driver, and initialises it.
    init() throws(MartletError) {
        let library = try DynamicLibrary("the NVIDIA driver", ["libcuda.so.1", "libcuda.so"])
        initialize = try library.symbol("cuInit")
        driverGetVersion = try library.symbol("cuDriverGetVersion")
        deviceGetCount = try library.symbol("cuDeviceGetCount")
        deviceGet = try library.symbol("cuDeviceGet")
        deviceGetName = try library.symbol("cuDeviceGetName")
        deviceGetAttribute = try library.symbol("cuDeviceGetAttribute")
        deviceTotalMem = try library.symbol("cuDeviceTotalMem_v2")
        deviceGetPCIBusId = try? library.symbol("cuDeviceGetPCIBusId")
        primaryContextRetain = try library.symbol("cuDevicePrimaryCtxRetain")
        contextSetCurrent = try library.symbol("cuCtxSetCurrent")
        contextSetLimit = try library.symbol("cuCtxSetLimit")
        memoryInfo = try library.symbol("cuMemGetInfo_v2")
        memoryAllocate = try library.symbol("cuMemAlloc_v2")
        memoryFree = try library.symbol("cuMemFree_v2")
        hostAllocate = try library.symbol("cuMemHostAlloc")
        hostFree = try library.symbol("cuMemFreeHost")
        hostRegister = try? library.symbol("cuMemHostRegister_v2")
        hostUnregister = try? library.symbol("cuMemHostUnregister")
        copy = try library.symbol("cuMemcpyAsync")
        streamCreate = try library.symbol("cuStreamCreate")
        streamSynchronize = try library.symbol("cuStreamSynchronize")
        streamWaitEvent = try library.symbol("cuStreamWaitEvent")
        eventCreate = try library.symbol("cuEventCreate")
        eventRecord = try library.symbol("cuEventRecord")
        eventSynchronize = try library.symbol("cuEventSynchronize")
        eventElapsedTime = try library.symbol("cuEventElapsedTime")
        eventDestroy = try library.symbol("cuEventDestroy_v2")
        moduleLoadData = try library.symbol("cuModuleLoadData")
        moduleGetFunction = try library.symbol("cuModuleGetFunction")
        functionSetAttribute = try library.symbol("cuFuncSetAttribute")
        launchKernel = try library.symbol("cuLaunchKernelEx")
        tensorMapEncodeTiled = try? library.symbol("cuTensorMapEncodeTiled")
        getErrorName = try library.symbol("cuGetErrorName")
        getErrorString = try library.symbol("cuGetErrorString")
        let result = initialize(0)
        guard result == 0 else {
            throw MartletError(
                "the NVIDIA driver does not start", in: library.description, because: text(of: result),
                fix: "check `nvidia-smi`; or train on the CPU with 'device: cpu'")
        }
    }

    /// "CUDA_ERROR_OUT_OF_MEMORY: out of memory"
    func text(of result: Result) -> String {
        var name: UnsafePointer<CChar>?, meaning: UnsafePointer<CChar>?
        _ = getErrorName(result, &name)
        _ = getErrorString(result, &meaning)
        guard let name, let meaning else { return "error \(result)" }
        return "\(String(cString: name)): \(String(cString: meaning))"
    }
}
