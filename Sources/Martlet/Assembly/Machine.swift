/// What the machine has to give.
enum Machine {
    /// Bytes that a run may plan for: nine tenths of what is free, within the limit of the container if there is one.
    static var plannableMemory: Int { ProcessMemory.availableByteCount / 10 * 9 }
}
