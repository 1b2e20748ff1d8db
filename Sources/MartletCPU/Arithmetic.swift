internal import CMartletVectors

/// Who does the arithmetic of the inner loops.
package enum Arithmetic: Sendable, Equatable {
    /// Our own loops for AVX2 (level 1) or AVX-512 (level 2).
    case vectors(level: Int32)
    /// OpenBLAS for the matrix product, plain Swift for the rest.
    case openBLAS
    /// Plain Swift: the definition.
    case plain

    /// What this machine has, the fastest first.
    package static let available: [Arithmetic] = {
        let levels = stride(from: martletVectorLevel(), to: 0, by: -1).map { Arithmetic.vectors(level: $0) }
        return levels + (OpenBLAS.shared == nil ? [] : [.openBLAS]) + [.plain]
    }()

    var level: Int32 { if case .vectors(let level) = self { level } else { 0 } }

    /// "AVX-512", "OpenBLAS 0.3.21"
    var name: String {
        switch self {
        case .vectors(let level): level == 2 ? "AVX-512" : "AVX2"
        case .openBLAS: OpenBLAS.shared?.name ?? "OpenBLAS"
        case .plain: "own matrix product"
        }
    }
}
