/// lora_backward_sm90.cu: what B of an adapter of rank 16 makes in the backward pass, on Hopper.
struct OutputAdapterKernel {
    let outputs: Int

    /// Blocks of a cluster, which share an expert's columns.
    static let parts = 8
    static let boxRows = 32

    /// nil where the columns cannot be shared, or are too many for the shared memory of a block.
    init?(_ path: ExpertsPath, rank: Int, outputs: Int) {
        self.outputs = outputs
        let isShared = outputs % (64 * OutputAdapterKernel.parts) == 0
        guard path == .hopper, rank == 16, isShared, sharedBytes <= 227 << 10 else { return nil }
    }

    var variant: KernelVariant { KernelVariant("lora_backward_sm90.cu", [KernelDefine("WIDTH", outputs)]) }
    var sharedBytes: Int { 36 * outputs + 12328 }
}
