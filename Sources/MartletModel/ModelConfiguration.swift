package import MartletCore

/// The shape and behaviour of a decoder, family-free: families fill it in (Families/), layers read it.
package struct ModelConfiguration: Sendable, Equatable {
    /// `model_type` of config.json.
    package var modelType: String
    package var hiddenSize: Int
    package var layerCount: Int
    package var vocabularyCount: Int
    package var queryHeadCount: Int
    package var keyValueHeadCount: Int
    package var headSize: Int
    /// Inner size of dense MLPs.
    package var denseInnerSize: Int
    package var rmsEpsilon: Float
    package var ropeTheta: Double
    package var maximumPositions: Int
    package var tiesEmbeddings: Bool
    /// Mixture-of-experts part; nil for a dense model.
    package var experts: ExpertsConfiguration?
    /// For each layer, whether its MLP is a mixture of experts.
    package var isSparse: [Bool]
    /// `eos_token_id`: one, several or none; generation_config.json may say otherwise.
    package var endTokens: [Int]

    package init(
        modelType: String, hiddenSize: Int, layerCount: Int, vocabularyCount: Int, queryHeadCount: Int,
        keyValueHeadCount: Int, headSize: Int, denseInnerSize: Int, rmsEpsilon: Float = 1e-6, ropeTheta: Double,
        maximumPositions: Int, tiesEmbeddings: Bool, experts: ExpertsConfiguration? = nil, isSparse: [Bool],
        endTokens: [Int] = []
    ) {
        self.modelType = modelType
        self.hiddenSize = hiddenSize
        self.layerCount = layerCount
        self.vocabularyCount = vocabularyCount
        self.queryHeadCount = queryHeadCount
        self.keyValueHeadCount = keyValueHeadCount
        self.headSize = headSize
        self.denseInnerSize = denseInnerSize
        self.rmsEpsilon = rmsEpsilon
        self.ropeTheta = ropeTheta
        self.maximumPositions = maximumPositions
        self.tiesEmbeddings = tiesEmbeddings
        self.experts = experts
        self.isSparse = isSparse
        self.endTokens = endTokens
    }

    package struct ExpertsConfiguration: Sendable, Equatable {
        package var expertCount: Int
        package var expertsPerToken: Int
        package var innerSize: Int
        package var normalizesTopK: Bool
        /// `router_aux_loss_coef`, used only when the router is trained.
        package var auxiliaryLossCoefficient: Double

        package init(
            expertCount: Int, expertsPerToken: Int, innerSize: Int, normalizesTopK: Bool,
            auxiliaryLossCoefficient: Double = 0.001
        ) {
            self.expertCount = expertCount
            self.expertsPerToken = expertsPerToken
            self.innerSize = innerSize
            self.normalizesTopK = normalizesTopK
            self.auxiliaryLossCoefficient = auxiliaryLossCoefficient
        }
    }

    /// Reads a parsed config.json, in the hub's spelling or that of transformers 5.
    package init(json: JSON) throws(MartletError) {
        let family = try Family.of(json)
        self = try family.readConfiguration(ConfigurationReader(json))
    }

    /// config.json for this configuration, in the hub's spelling.
    package func json(dtype: DType) -> JSON {
        guard let family = Family.named(modelType) else { return .object([:]) }
        var object = family.writeConfiguration(self)
        object["torch_dtype"] = .string(dtype.torchName)
        return .object(object)
    }
}

extension DType {
    /// The name that PyTorch, and so config.json, uses.
    package var torchName: String {
        switch self {
        case .float32: "float32"
        case .bfloat16: "bfloat16"
        case .float16: "float16"
        case .int16: "int16"
        case .int32: "int32"
        case .int64: "int64"
        case .uint8: "uint8"
        }
    }
}
