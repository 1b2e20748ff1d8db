internal import MartletCore

/// How far from a golden a result may be.
///
/// In float32 as docs/goldens.md says. In bfloat16 logits may be 2 % of the largest apart, losses 1 %, gradients 5 % of a
/// tensor's largest; in float16 a quarter of that. Where transformers and PEFT themselves are further from their own float32
/// when they compute this golden in bfloat16 (bfloat16.json, by tools/goldens/model.py), that counts instead: rounding moves
/// some models more than others, and more than the reference keeps cannot be asked for. But twice the fixed bound is the end:
/// a golden in which rounding changes a choice judges nothing.
struct GoldenBounds {
    /// What is computed in; whose bounds count.
    let dtype: DType
    /// What transformers lose in bfloat16, by the names of the distances.
    private let lost: [String: Double]

    init(folder: String, dtype: DType) throws(MartletError) {
        self.dtype = dtype
        let file = FileSystem.join(folder, "bfloat16.json")
        guard dtype == .bfloat16, FileSystem.exists(file) else {
            lost = [:]
            return
        }
        var lost: [String: Double] = [:]
        for (name, value) in try FileSystem.readJSON(file).object ?? JSONObject() { lost[name] = value.number }
        self.lost = lost
    }

    var isCoarse: Bool { dtype.isHalf }

    /// `half` is the bound in bfloat16, `whole` that in float32; `place` the tensor that is furthest off.
    func distance(
        _ name: String, _ value: Double, half: Double, whole: Double, at place: String? = nil
    ) -> GoldenDistance {
        let fixed = dtype == .float16 ? half / 4 : isCoarse ? half : whole
        let bound = lost[name].map { max(fixed, min($0, 2 * fixed)) } ?? fixed
        return GoldenDistance(name: name, value: value, fixed: fixed, bound: bound, lost: lost[name], place: place)
    }
}

/// How far something is from its golden, and how far it may be.
struct GoldenDistance: CustomStringConvertible {
    var name: String
    var value: Double
    /// The bound of every golden, and that of this one.
    var fixed, bound: Double
    /// How far transformers are in bfloat16, where that is known.
    var lost: Double?
    var place: String?

    var isSound: Bool { value <= bound }

    var description: String {
        let text = "\(name) \(shortest(value))" + (lost.map { " (transformers \(shortest($0)))" } ?? "")
        if value <= fixed { return text }
        return text + (place.map { " in \($0)" } ?? "")
            + (isSound ? ", more than \(shortest(fixed))" : ", where \(shortest(bound)) may be")
    }
}
