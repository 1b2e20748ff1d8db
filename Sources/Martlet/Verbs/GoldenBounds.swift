internal import MartletCore

/// How far from a golden a result may be: in float32 as docs/goldens.md says, in bfloat16 2 % of the largest logit, 1 % of a loss,
/// 5 % of the norm of a tensor's gradient and 10 % of its largest entry; in float16 a quarter of that.
struct GoldenBounds {
    /// What is computed in; whose bounds count.
    let dtype: DType

    var isCoarse: Bool { dtype.isHalf }

    /// `half` is the bound in bfloat16, `whole` that in float32; `place` the tensor that is furthest off.
    func distance(
        _ name: String, _ value: Double, half: Double, whole: Double, at place: String? = nil
    ) -> GoldenDistance {
        let bound = dtype == .float16 ? half / 4 : isCoarse ? half : whole
        return GoldenDistance(name: name, value: value, bound: bound, place: place)
    }
}

/// How far something is from its golden, and how far it may be.
struct GoldenDistance: CustomStringConvertible {
    var name: String
    var value: Double
    var bound: Double
    var place: String?

    var isSound: Bool { value <= bound }

    var description: String {
        let text = "\(name) \(shortest(value))"
        return isSound ? text : text + (place.map { " in \($0)" } ?? "") + ", where \(shortest(bound)) may be"
    }
}
