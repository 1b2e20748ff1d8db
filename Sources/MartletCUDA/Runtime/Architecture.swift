/// The GPUs that a cubin is made for.
struct Architecture: Hashable, Sendable {
    /// 90 for compute capability 9.0.
    let capability: Int

    /// As the compiler calls it: with the architecture's own features on Hopper and Blackwell.
    var name: String { "sm_\(capability)" + (capability >= 90 ? "a" : "") }

    /// Whether a kernel can be placed on the GPU while the one before it ends (programmatic dependent launch).
    var overlapsKernels: Bool { capability >= 90 }

    /// Shared memory that a block may have (CUDA C++ programming guide, compute capabilities).
    var sharedBytes: Int {
        switch capability {
        case 80, 87: 163 << 10
        case 90, 100, 103, 110: 227 << 10
        default: 99 << 10
        }
    }
}
