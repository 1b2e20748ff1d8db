internal import MartletCore

/// The GPUs that a kernel is compiled for.
struct Architecture: Hashable, Sendable {
    /// 90 for compute capability 9.0.
    let capability: Int
    /// Compiled as text (PTX), from which the driver makes code for a newer GPU.
    var isText = false

    /// As the compiler calls it: with the architecture's own features on Hopper and Blackwell.
    var name: String { isText ? "compute_\(capability)" : "sm_\(capability)" + (capability >= 90 ? "a" : "") }

    /// "9.0"
    var number: String { "\(capability / 10).\(capability % 10)" }

    /// The 16-bit floats of its tensor cores that ops compute with: before Ampere there is no bfloat16.
    var half: DType { capability >= 80 ? .bfloat16 : .float16 }

    /// Whether a kernel can be placed on the GPU while the one before it ends (programmatic dependent launch).
    var overlapsKernels: Bool { capability >= 90 }

    /// Shared memory that a block may have (CUDA C++ programming guide, compute capabilities).
    var sharedBytes: Int {
        switch capability {
        case 75: 64 << 10
        case 80, 87: 163 << 10
        case 90, 100, 103, 110: 227 << 10
        default: 99 << 10
        }
    }

    /// Computes on a GPU as on an older one, for checking: "7.5" in `MARTLET_CAPABILITY`. nil: as what it is.
    static func standIn(
        on capability: Int, named name: String? = environment("MARTLET_CAPABILITY")
    ) throws(MartletError) -> Architecture? {
        guard let name, !name.isEmpty else { return nil }
        // Of Hopper and newer the driver makes code for no other.
        let known = KernelCatalog.architectures.filter { $0.capability < min(capability, 90) }
        if let wanted = known.first(where: { $0.number == name }) {
            return Architecture(capability: wanted.capability, isText: true)
        }
        throw MartletError(
            "this GPU cannot stand in for one of compute capability '\(name)'", in: "MARTLET_CAPABILITY",
            because: "it can for " + known.map(\.number).joined(separator: ", "), fix: "unset it")
    }
}
