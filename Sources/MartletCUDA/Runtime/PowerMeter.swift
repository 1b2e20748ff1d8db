/// What a GPU takes from the wall, by NVML, which comes with the driver. A step that the power limit holds back runs at a
/// lower clock, so that its time says less of its kernels.
package struct PowerMeter {
    /// Watts that the GPU may take.
    package let limit: Double
    private let gpu: OpaquePointer
    private let energy: @convention(c) (OpaquePointer?, UnsafeMutablePointer<UInt64>) -> Int32

    /// nil where the GPU or its driver does not tell.
    package init?(of backend: CUDABackend) {
        typealias Start = @convention(c) () -> Int32
        typealias Find = @convention(c) (UnsafePointer<CChar>, UnsafeMutablePointer<OpaquePointer?>) -> Int32
        typealias Limit = @convention(c) (OpaquePointer?, UnsafeMutablePointer<UInt32>) -> Int32
        guard let library = try? DynamicLibrary("NVML", ["libnvidia-ml.so.1"]),
            let start = try? library.symbol("nvmlInit_v2", as: Start.self),
            let find = try? library.symbol("nvmlDeviceGetHandleByPciBusId_v2", as: Find.self),
            let readLimit = try? library.symbol("nvmlDeviceGetEnforcedPowerLimit", as: Limit.self)
        else { return nil }
        do { energy = try library.symbol("nvmlDeviceGetTotalEnergyConsumption") } catch { return nil }
        var found: OpaquePointer?, milliwatts: UInt32 = 0
        guard start() == 0, find(backend.device.busID, &found) == 0, let found, readLimit(found, &milliwatts) == 0
        else { return nil }
        (gpu, limit) = (found, Double(milliwatts) / 1000)
    }

    /// Joules taken since the driver was loaded; counted some ten times a second.
    package var joules: Double? {
        var millijoules: UInt64 = 0
        return energy(gpu, &millijoules) == 0 ? Double(millijoules) / 1000 : nil
    }
}
