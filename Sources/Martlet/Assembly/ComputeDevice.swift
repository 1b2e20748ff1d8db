internal import MartletCPU
internal import MartletCUDA
package import MartletCore

/// Where a run computes.
public enum ComputeDevice: String, Sendable, CaseIterable {
    /// The GPU if there is one that Martlet can use, else the CPU.
    case auto
    case cpu
    /// An NVIDIA GPU of compute capability 8.0 or newer; an error if there is none.
    case cuda
    /// The same in float32: slow, for checking.
    case cudaFloat32 = "cuda-fp32"

    /// The backend, and, where `auto` ended on the CPU, why.
    package func makeBackend(threads: Int?) throws(MartletError) -> (backend: any Backend, reason: String?) {
        switch self {
        case .cpu: return (CPUBackend(threads: threads), nil)
        case .cuda: return (try CUDABackend(), nil)
        case .cudaFloat32: return (try CUDABackend(computeDType: .float32), nil)
        case .auto:
            do throws(MartletError) {
                return (try CUDABackend(), nil)
            } catch {
                return (CPUBackend(threads: threads), "no GPU: \(error.problem)")
            }
        }
    }
}

/// Where and with how much of the machine to compute.
public struct Compute: Sendable, Equatable {
    /// CPU or GPU.
    public var device: ComputeDevice
    /// CPU threads; nil: all cores.
    public var threads: Int?

    /// The GPU if there is one, all cores.
    public init(device: ComputeDevice = .auto, threads: Int? = nil) {
        self.device = device
        self.threads = threads
    }

    package func makeBackend() throws(MartletError) -> any Backend { try device.makeBackend(threads: threads).backend }
}

/// Memory that a plan is made for: the GPU's, or this process's.
struct DeviceMemory {
    /// Bytes in use that are not the plan's: of the process, or of everything on the GPU.
    var used: Int
    /// Bytes that a plan may take beside those.
    var plannable: Int
    /// Bytes of host memory that a plan may take beside a device's own; 0 where there is no other memory.
    var hostPlannable = 0

    init(of backend: any Backend) {
        if let cuda = backend as? CUDABackend {
            (used, plannable) = (cuda.usedByteCount, cuda.plannableByteCount)
            hostPlannable = Machine.plannableMemory
        } else {
            (used, plannable) = (ProcessMemory.residentByteCount, Machine.plannableMemory)
        }
    }

    /// What `used` is, for a table.
    static func name(on backend: any Backend) -> (name: String, note: String) {
        backend is CUDABackend
            ? ("in use on the GPU", "measured now: driver, libraries, other processes")
            : ("the process itself", "measured now, with tokenizer and dataset loaded")
    }

    /// The most that was in use so far.
    static func peak(of backend: any Backend) -> Int {
        (backend as? CUDABackend)?.usedByteCount ?? ProcessMemory.peakByteCount
    }
}
