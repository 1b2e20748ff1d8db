import ArgumentParser
import Martlet

/// Where a command computes.
struct ComputeOptions: ParsableArguments {
    @Option(help: "Where to compute: auto (the GPU if there is one), cpu, cuda, cuda-fp32 (for checking).")
    var device = DeviceName.auto
    @Option(help: "CPU threads (default: all cores).") var threads: Int?
    @OptionGroup var gpu: GPUOptions

    func validate() throws { if device == .cpu { try gpu.refuse() } }

    var value: Compute { Compute(device: ComputeDevice(rawValue: device.rawValue) ?? .auto, threads: threads) }
}

enum DeviceName: String, ExpressibleByArgument, CaseIterable {
    case auto, cpu, cuda
    case cudaFloat32 = "cuda-fp32"
}
