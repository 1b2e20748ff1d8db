internal import MartletCore

/// What is trained, and how.
package struct ModelSettings: Sendable, Equatable {
    package enum Method: Sendable, Equatable {
        /// Nothing is trained; an adapter may be applied.
        case inference
        /// Every weight but the router's.
        case full
        /// Adapters only.
        case lora
    }

    package var method: Method
    /// The adapters on the model: trained with `.lora`, only applied with `.inference`.
    package var adapter: LoRASettings?
    /// Train the router's weights too (off by default: a moving router unlearns the experts' division of labour).
    package var trainsRouter = false
    /// Coefficient of the load-balancing loss (Switch Transformer); only with `trainsRouter`.
    package var auxiliaryLossCoefficient: Double = 0
    /// Coefficient of the router z loss (ST-MoE); only with `trainsRouter`.
    package var zLossCoefficient: Double = 0
    /// Keep the optimizer's moments in 8 bits.
    package var quantizesMoments = false
    /// Seeds adapter initialisation and dropout.
    package var seed: UInt64 = 0

    package init(_ method: Method, adapter: LoRASettings? = nil) {
        self.method = method
        self.adapter = adapter
    }

    package var trains: Bool { method != .inference }
}

/// Which projections get a low-rank adapter, and its shape (the names in comments are PEFT's).
package struct LoRASettings: Sendable, Equatable {
    package var rank: Int
    package var alpha: Double
    /// alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023).
    package var usesRSLoRA: Bool
    package var dropout: Float
    package var targets: Set<LoRATarget>

    package init(
        rank: Int, alpha: Double, usesRSLoRA: Bool = false, dropout: Float = 0,
        targets: Set<LoRATarget> = Set(LoRATarget.allCases)
    ) {
        self.rank = rank
        self.alpha = alpha
        self.usesRSLoRA = usesRSLoRA
        self.dropout = dropout
        self.targets = targets
    }

    package var scale: Float { Float(usesRSLoRA ? alpha / Double(rank).squareRoot() : alpha / Double(rank)) }
}

/// A kind of projection that an adapter can sit on.
package enum LoRATarget: String, Sendable, CaseIterable {
    case query, key, value, output
    /// Gate and up of the experts, one A for both.
    case expertsGateUp
    case expertsDown
    /// The three projections of a dense MLP.
    case gate, up, down

    /// The weight that this target adapts in layer `layer`.
    package func weight(layer: Int) -> Weight {
        switch self {
        case .query: .query(layer)
        case .key: .key(layer)
        case .value: .value(layer)
        case .output: .output(layer)
        case .expertsGateUp: .expertsGateUp(layer)
        case .expertsDown: .expertsDown(layer)
        case .gate: .gate(layer)
        case .up: .up(layer)
        case .down: .down(layer)
        }
    }

    package var group: String {
        switch self {
        case .query, .key, .value, .output: "attention LoRA"
        case .expertsGateUp, .expertsDown: "experts LoRA"
        case .gate, .up, .down: "MLP LoRA"
        }
    }
}
