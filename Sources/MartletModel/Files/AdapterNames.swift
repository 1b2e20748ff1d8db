internal import MartletCore

/// How PEFT names what adapters are put on, derived from the names under which a family stores its weights.
struct AdapterNames {
    let configuration: ModelConfiguration
    private let family: Family

    init(_ configuration: ModelConfiguration) throws(MartletError) {
        self.configuration = configuration
        family = try Family.of(["model_type": .string(configuration.modelType)])
    }

    static let prefix = "base_model.model."

    var weights: [Weight] { configuration.weights.filter(\.isAdaptable) }

    /// The module of a projection: "model.layers.0.self_attn.q_proj".
    func module(of weight: Weight) -> String { moduleName(family.layouts(weight, configuration)[0][0]) }

    /// One part an expert and projection, "...mlp.experts.3.up_proj.weight", in the order of rows.
    func separateParts(of weight: Weight) -> [WeightPart] {
        family.layouts(weight, configuration).first { $0.count > 1 || !weight.isExperts } ?? []
    }

    func moduleName(_ part: WeightPart) -> String {
        part.name.hasSuffix(".weight") ? String(part.name.dropLast(7)) : part.name
    }

    /// The tensor that holds all experts: module "model.layers.0.mlp.experts", parameter "gate_up_proj".
    func fused(of weight: Weight) -> (module: String, parameter: String) {
        let name = family.layouts(weight, configuration).first { $0.count == 1 }?[0].name ?? ""
        let dot = name.lastIndex(of: ".") ?? name.startIndex
        return (String(name[..<dot]), String(name[name.index(after: dot)...]))
    }

    /// What a weight is called in every layer: "self_attn.q_proj", "experts.gate_up_proj".
    func kind(of weight: Weight) -> String {
        let (module, parameter) = weight.isExperts ? fused(of: weight) : (self.module(of: weight), "")
        return (module + (parameter.isEmpty ? "" : "." + parameter)).split(separator: ".").suffix(2).joined(
            separator: ".")
    }

    /// The module that holds the fused tensors of a layer's experts, nil for a dense layer.
    func expertsModule(of layer: Int) -> String? {
        configuration.isSparse[layer] ? fused(of: .expertsGateUp(layer)).module : nil
    }
}
