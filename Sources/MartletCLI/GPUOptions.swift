import ArgumentParser
import Glibc

/// Flags for what environment variables say of the GPU: a flag wins. They are set before anything is loaded.
struct GPUOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Folders to find CUDA's libraries in before all others (MARTLET_CUDA_PATH).", valueName: "folder:folder"))
    var cudaPath: String?
    @Option(help: "How the GPU computes experts: auto, hopper, portable, loop (MARTLET_MOE_BACKEND).")
    var moeBackend: String?
    @Option(help: "How the GPU computes attention: auto, hopper, cudnn, flash, plain (MARTLET_ATTENTION).")
    var attention: String?

    func validate() {
        let chosen = ["MARTLET_CUDA_PATH": cudaPath, "MARTLET_MOE_BACKEND": moeBackend, "MARTLET_ATTENTION": attention]
        for case (let variable, let value?) in chosen { setenv(variable, value, 1) }
    }
}
