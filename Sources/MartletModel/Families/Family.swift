package import MartletCore

/// What distinguishes a family: how it spells its configuration and under which names it stores its weights.
package struct Family: Sendable {
    /// The `model_type`s that it serves.
    package let modelTypes: [String]
    package let readConfiguration: @Sendable (ConfigurationReader) throws(MartletError) -> ModelConfiguration
    /// config.json in the hub's spelling, without the dtype.
    package let writeConfiguration: @Sendable (ModelConfiguration) -> JSONObject
    /// The ways in which a weight may be stored; the first is the hub's, which is also the one written.
    package let layouts: @Sendable (Weight, ModelConfiguration) -> [[WeightPart]]

    package static let all: [Family] = [.qwen3]
    package static var supportedModelTypes: [String] { all.flatMap(\.modelTypes) }

    package static func named(_ modelType: String) -> Family? { all.first { $0.modelTypes.contains(modelType) } }

    /// The family of a parsed config.json.
    package static func of(_ json: JSON) throws(MartletError) -> Family {
        let reader = try ConfigurationReader(json)
        let supported = supportedModelTypes.joined(separator: ", ")
        guard let type = reader.value("model_type") else {
            throw MartletError(
                "config.json does not say what model it is", in: "key \"model_type\"",
                because: reader.value("peft_type") == nil
                    ? "the key is missing" : "this is the configuration of an adapter",
                fix: "give the folder of a base model; supported: \(supported)")
        }
        guard let name = type.string, let family = named(name) else {
            let guess = closestMatch(to: type.string ?? "", among: supportedModelTypes)
            throw MartletError(
                "this model family is not supported", in: "config.json, key \"model_type\"",
                because: "it is \(type.text())",
                fix: "choose a model of a supported family: \(supported)"
                    + (guess.map { " (did you mean '\($0)'?)" } ?? ""))
        }
        return family
    }
}

/// One stored tensor, and where it lands in a weight viewed as [all rows, last extent].
package struct WeightPart: Sendable, Equatable {
    package var name: String
    /// The shape on disk.
    package var shape: [Int]
    /// The first row it fills.
    package var firstRow: Int
    /// Whether the last two axes are swapped on disk.
    package var isTransposed: Bool

    package init(_ name: String, _ shape: [Int], firstRow: Int = 0, isTransposed: Bool = false) {
        self.name = name
        self.shape = shape
        self.firstRow = firstRow
        self.isTransposed = isTransposed
    }

    /// The columns of the weight.
    package var columnCount: Int {
        shape.count < 2 ? shape[0] : isTransposed ? shape[shape.count - 2] : shape[shape.count - 1]
    }
    /// The rows of the weight that it fills.
    package var rowCount: Int { shape.reduce(1, *) / max(columnCount, 1) }
    package var rows: Range<Int> { firstRow..<firstRow + rowCount }
    /// The rows of one matrix, where the part holds a stack of them.
    package var matrixRowCount: Int {
        shape.count < 2 ? 1 : isTransposed ? shape[shape.count - 1] : shape[shape.count - 2]
    }
}
