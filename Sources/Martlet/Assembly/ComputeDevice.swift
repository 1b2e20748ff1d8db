internal import MartletCPU
internal import MartletCUDA
package import MartletCore

/// Where a run computes.
public enum ComputeDevice: String, Sendable, CaseIterable {
    /// The GPU if there is one that Martlet can use, else the CPU.
    case auto
    case cpu
    /// An NVIDIA GPU of compute capability 7.5 or newer; an error if there is none.
    case cuda
    /// The same in float32: slow, for checking.
    case cudaFloat32 = "cuda-fp32"

    /// The backend, and, where `auto` ended on the CPU, why. Where all sums have a fixed order anyway, it is an error to
    /// want none.
    package func makeBackend(
        threads: Int?, isDeterministic: Bool = true
    ) throws(MartletError) -> (backend: any Backend, reason: String?) {
        let made = try backend(threads, isDeterministic)
        guard isDeterministic || (made.backend as? CUDABackend)?.isDeterministic == false else {
            throw MartletError(
                "'deterministic: false' has no effect", in: made.backend.name,
                because: "every sum has a fixed order here", fix: "delete 'deterministic'")
        }
        return made
    }

    private func backend(
        _ threads: Int?, _ isDeterministic: Bool
    ) throws(MartletError) -> (backend: any Backend, reason: String?) {
        switch self {
        case .cpu: return (CPUBackend(threads: threads), nil)
        case .cuda: return (try CUDABackend(isDeterministic: isDeterministic), nil)
        case .cudaFloat32: return (try CUDABackend(inFloat32: true), nil)
        case .auto:
            do throws(MartletError) {
                return (try CUDABackend(isDeterministic: isDeterministic), nil)
            } catch {
                // Who names a way on the GPU does not want the CPU.
                if error.isInEnvironment { throw error }
                return (CPUBackend(threads: threads), "no GPU: \(error.problem)")
            }
        }
    }
}

extension MartletError {
    /// Whether it lies in a variable of ours.
    var isInEnvironment: Bool { location?.hasPrefix("MARTLET_") ?? false }
}

/// Where and with how much of the machine to compute.
public struct Compute: Sendable, Equatable {
    /// CPU or GPU.
    public var device: ComputeDevice
    /// CPU threads; nil: all cores.
    public var threads: Int?
    /// Whether the same inputs give the same bytes; cuDNN's attention on a GPU is faster if they need not.
    public var isDeterministic = true

    /// The GPU if there is one, all cores.
    public init(device: ComputeDevice = .auto, threads: Int? = nil) {
        self.device = device
        self.threads = threads
    }

    package func makeBackend() throws(MartletError) -> any Backend {
        try device.makeBackend(threads: threads, isDeterministic: isDeterministic).backend
    }
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
