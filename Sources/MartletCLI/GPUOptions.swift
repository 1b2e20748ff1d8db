import ArgumentParser
import Glibc

/// Flags for what environment variables say of the GPU: a flag wins. They are set before anything is loaded.
struct GPUOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Folders to find CUDA's libraries in before all others (MARTLET_CUDA_PATH).", valueName: "folder:folder"))
    var cudaPath: String?
    @Option(help: "How the GPU computes experts (MARTLET_MOE_BACKEND).") var moeBackend: MoEBackendName?
    @Option(help: "How the GPU computes attention (MARTLET_ATTENTION).") var attention: AttentionName?

    func validate() throws {
        for folder in cudaPath?.split(separator: ":") ?? [] where access(String(folder), R_OK | X_OK) != 0 {
            throw ValidationError("--cuda-path: there is no folder '\(folder)' that can be read")
        }
        let chosen = [
            "MARTLET_CUDA_PATH": cudaPath, "MARTLET_MOE_BACKEND": moeBackend?.rawValue,
            "MARTLET_ATTENTION": attention?.rawValue,
        ]
        for case (let variable, let value?) in chosen { setenv(variable, value, 1) }
    }

    /// For where a CPU was asked for.
    func refuse() throws {
        guard cudaPath != nil || moeBackend != nil || attention != nil else { return }
        throw ValidationError(
            "--cuda-path, --moe-backend and --attention have no effect on the CPU: leave them out, or ask for a GPU")
    }
}

enum MoEBackendName: String, ExpressibleByArgument, CaseIterable {
    case auto, hopper, portable, loop
}

enum AttentionName: String, ExpressibleByArgument, CaseIterable {
    case auto, hopper, cudnn, flash, plain
}
