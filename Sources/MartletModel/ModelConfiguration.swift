internal import MartletCore

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

    package struct ExpertsConfiguration: Sendable, Equatable {
        package var expertCount: Int
        package var expertsPerToken: Int
        package var innerSize: Int
        package var normalizesTopK: Bool
        /// `router_aux_loss_coef`, used only when the router is trained.
        package var auxiliaryLossCoefficient: Double
    }
}
