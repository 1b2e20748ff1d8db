internal import MartletCUDA
internal import MartletCore
internal import MartletModel

extension StepBenchmark {
    /// One op's share of a step.
    public struct OpTime: Sendable, CustomStringConvertible {
        /// The op, as the `Backend` protocol names it; of a kernel, its own name behind that.
        public var name: String
        /// How often a step calls it.
        public var count: Int
        /// Device milliseconds of all calls.
        public var milliseconds: Double
        /// Milliseconds at the device's own matrix product and memory speeds; 0 where nothing is counted. What is computed again is not.
        public var roofMilliseconds: Double

        /// "13.9 ms in 144 x linear, 91%"
        public var description: String {
            let share = roofMilliseconds > 0 ? ", \(fixed(roofMilliseconds / milliseconds * 100, 0))%" : ""
            return "\(fixed(milliseconds, 2)) ms in \(count) x \(name)\(share)"
        }
    }

    /// By op and by kernel, of a step each, one behind the other: at a clock that the GPU keeps up. The roofs are those of a GPU that
    /// has rested, so that a share means the same whatever ran before.
    mutating func takeProfile(
        _ model: Model, _ step: PackedStep, _ index: Int, _ costs: StepCosts
    ) throws(MartletError) {
        guard let cuda = model.backend as? CUDABackend else { return }
        let ops = try cuda.profile { () throws(MartletError) in _ = try model.benchmarkStep(step, index) }
        let launches = try cuda.profile(by: .kernels) { () throws(MartletError) in
            _ = try model.benchmarkStep(step, index + 1)
        }
        let bandwidth = try Roofs.gigabytes(of: cuda), peak = try Roofs.gigaflops(of: cuda, rested: true)
        (roofGigaflops, memoryGigabytes) = (peak, bandwidth)
        func time(_ time: KernelCosts.Time, _ cost: StepCosts.Cost?) -> OpTime {
            OpTime(
                name: time.name, count: time.count, milliseconds: time.milliseconds,
                roofMilliseconds: cost?.milliseconds(gigaflops: peak, gigabytes: bandwidth) ?? 0)
        }
        profile = ops.map { time($0, costs.costs[$0.name]) }
        kernels = KernelCosts(costs).measured(launches).map(time)
    }
}
