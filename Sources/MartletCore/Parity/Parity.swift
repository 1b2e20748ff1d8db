/// One result of one op, as two backends compute it.
package struct ParityResult: Sendable, CustomStringConvertible {
    /// The case: the op and its sizes.
    package var op: String
    /// Which of the op's results: "y", "dx", ...
    package var result: String
    /// The largest difference over the reference's largest magnitude; infinite where one has a number and the other none.
    package var error: Double
    package var tolerance: Double
    /// Whether the op kept within its tensors.
    package var isContained: Bool

    package var isSound: Bool { error <= tolerance && isContained }

    package var description: String {
        "\(op), \(result): " + (isContained ? "" : "written beyond its tensors, ")
            + "\(error) apart where \(tolerance) may be"
    }
}

/// Whether a backend computes what another one does, op by op, forward and backward.
package enum Parity {
    /// What may lie between two backends of this compute dtype, relative to the largest value of a result.
    package static func tolerance(of dtype: DType) -> Double {
        switch dtype {
        case .bfloat16: 3e-2
        case .float16: 5e-3
        default: 1e-4
        }
    }

    /// Runs every case on both. If either computes in 16 bits, both get inputs that it holds exactly. Without a
    /// `tolerance` that of the coarser dtype counts.
    package static func compare(
        _ backend: any Backend, with reference: any Backend, tolerance: Double? = nil, cases: [OpCase] = Parity.cases
    ) throws(MartletError) -> [ParityResult] {
        let dtypes = [backend.computeDType, reference.computeDType]
        let tolerance = tolerance ?? dtypes.map { Parity.tolerance(of: $0) }.reduce(0, max)
        var results: [ParityResult] = []
        for exact in cases {
            let c =
                dtypes.contains(.float16) ? exact.inFloat16 : dtypes.contains(.bfloat16) ? exact.inBFloat16 : exact
            let wanted = try c.run(on: reference), found = try c.run(on: backend)
            for (name, values) in wanted.results.sorted(by: { $0.key < $1.key }) {
                results.append(
                    ParityResult(
                        op: c.name, result: name, error: error(of: found.results[name, default: []], values),
                        tolerance: c.idResults.contains(name) ? 0 : tolerance, isContained: found.isContained))
            }
        }
        return results
    }

    /// The largest difference over the reference's largest magnitude. What is not finite must be so in both.
    package static func error(of found: [Float], _ wanted: [Float]) -> Double {
        guard found.count == wanted.count else { return .infinity }
        var apart = 0.0, size = 0.0
        for (f, w) in zip(found, wanted) where f != w && !(f.isNaN && w.isNaN) {
            guard f.isFinite, w.isFinite else { return .infinity }
            apart = max(apart, (Double(f) - Double(w)).magnitude)
        }
        for w in wanted where w.isFinite { size = max(size, Double(w).magnitude) }
        return apart == 0 ? 0 : apart / size
    }

    /// The norm of the difference over the norm of `wanted`; infinite where a number is missing, or is none.
    package static func normError(of found: [Float], _ wanted: [Float]) -> Double {
        guard found.count == wanted.count else { return .infinity }
        var apart = 0.0, size = 0.0
        for (f, w) in zip(found, wanted) {
            guard f.isFinite, w.isFinite else { return .infinity }
            apart += (Double(f) - Double(w)) * (Double(f) - Double(w))
            size += Double(w) * Double(w)
        }
        return apart == 0 ? 0 : (apart / size).squareRoot()
    }
}
