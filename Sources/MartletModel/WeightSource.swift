package import MartletCore

/// Where a model's frozen weights come from: a checkpoint, or random numbers made in the backend's own memory.
package protocol WeightSource: AnyObject {
    var configuration: ModelConfiguration { get }
    /// Fills `destination`, of the weight's shape, converting to its dtype.
    func read(
        _ weight: Weight, into destination: Tensor, using backend: any Backend, checksValues: Bool
    ) throws(MartletError)
    /// Bytes on disk; 0 where there is no disk.
    var storedByteCount: Int { get }
    /// Nothing is read for a while: memory that only speeds up reading may go.
    func releasePages()
}

extension Checkpoint: WeightSource {
    package var storedByteCount: Int { tensors.tensors.reduce(0) { $0 + $1.byteCount } }
    package func releasePages() { tensors.releasePages() }
}

/// Weights of a model that is on no disk, for benchmarks: norms one, the embedding N(0, 1), projections N(0, 0.02), those
/// that write into the residual stream narrower by sqrt(2 x layers). So tokens spread over the experts as in a trained model; N(0, 0.02)
/// everywhere sends most of them to a few.
package final class RandomWeights: WeightSource {
    package let configuration: ModelConfiguration
    private let seed: UInt64
    /// Router rows from here on are zero, so that nearly all rows go to the experts before it.
    private let busyExpertCount: Int?
    private let indices: [Weight: UInt64]

    package init(_ configuration: ModelConfiguration, seed: UInt64, busyExpertCount: Int? = nil) {
        self.configuration = configuration
        self.seed = seed
        self.busyExpertCount = busyExpertCount
        indices = Dictionary(uniqueKeysWithValues: configuration.weights.enumerated().map { ($1, UInt64($0)) })
    }

    package func read(
        _ weight: Weight, into destination: Tensor, using backend: any Backend, checksValues: Bool
    ) throws(MartletError) {
        guard !weight.isNorm else {
            let ones = [Float](repeating: 1, count: destination.count)
            return ones.withUnsafeBytes { backend.upload($0, as: .float32, into: destination) }
        }
        backend.fillNormal(
            destination, standardDeviation: deviation(of: weight),
            seed: seed &* 0x9E37_79B9_7F4A_7C15 &+ (indices[weight] ?? 0))
        if weight.kind == .router, let busyExpertCount {
            backend.zero(destination.rows(min(busyExpertCount, destination.shape[0])..<destination.shape[0]))
        }
    }

    package let storedByteCount = 0
    package func releasePages() {}

    private func deviation(of weight: Weight) -> Float {
        switch weight {
        case .embedding: 1
        case .output, .down, .expertsDown: 0.02 / Float(2 * configuration.layerCount).squareRoot()
        default: 0.02
        }
    }
}
