internal import MartletCore
internal import MartletModel

/// What the names under `target_modules` stand for in a model.
struct Targets {
    let configuration: ModelConfiguration

    private var hasSparse: Bool { configuration.isSparse.contains(true) }
    private var hasDense: Bool { configuration.isSparse.contains(false) }

    /// The names this model has, in the order in which they are listed to people.
    var names: [String] {
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "attention"]
            + (hasSparse ? ["experts"] : []) + ["all-linear"]
    }

    /// The targets that the recipe names.
    func selected(by recipe: Recipe) throws(MartletError) -> Set<LoRATarget> {
        try recipe.checkTargets(names)
        let given = Set(recipe.targetModules)
        if hasSparse, given.contains("gate_proj") != given.contains("up_proj"),
            given.isDisjoint(with: ["experts", "all-linear"])
        {
            let missing = given.contains("gate_proj") ? "up_proj" : "gate_proj"
            throw recipe.refusal(
                "target_modules", "the experts' gate_proj and up_proj cannot be adapted apart",
                because: "they are one tensor of this model, and share one A", fix: "add '\(missing)'")
        }
        return given.reduce(into: []) { $0.formUnion(targets(of: $1)) }
    }

    private func targets(of name: String) -> Set<LoRATarget> {
        func feedForward(_ dense: LoRATarget, _ sparse: LoRATarget) -> Set<LoRATarget> {
            Set((hasDense ? [dense] : []) + (hasSparse ? [sparse] : []))
        }
        return switch name {
        case "q_proj": [.query]
        case "k_proj": [.key]
        case "v_proj": [.value]
        case "o_proj": [.output]
        case "gate_proj": feedForward(.gate, .expertsGateUp)
        case "up_proj": feedForward(.up, .expertsGateUp)
        case "down_proj": feedForward(.down, .expertsDown)
        case "attention": [.query, .key, .value, .output]
        case "experts": [.expertsGateUp, .expertsDown]
        default: names.filter { $0 != "all-linear" }.reduce(into: []) { $0.formUnion(targets(of: $1)) }
        }
    }
}
