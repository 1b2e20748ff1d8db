import ArgumentParser
import Martlet

/// Where a command computes.
struct ComputeOptions: ParsableArguments {
    @Option(help: "Where to compute: auto (the GPU if there is one), cpu, cuda, cuda-fp32 (for checking).")
    var device = ComputeDevice.auto
    @Option(help: "CPU threads (default: all cores).") var threads: Int?

    var value: Compute { Compute(device: device, threads: threads) }
}

extension ComputeDevice: ExpressibleByArgument {}
