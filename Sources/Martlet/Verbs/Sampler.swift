internal import MartletCore

/// How the next token is chosen from the model's logits.
public struct SamplingSettings: Sendable, Equatable {
    /// Logits are divided by it; 0 always takes the likeliest token.
    public var temperature: Double
    /// Only the `topK` likeliest tokens can be drawn; 0: all.
    public var topK: Int
    /// Only the likeliest tokens whose probabilities reach this sum can be drawn; 1: all.
    public var topP: Double
    /// The same seed and the same logits draw the same tokens.
    public var seed: Int

    /// By default the likeliest token.
    public init(temperature: Double = 0, topK: Int = 0, topP: Double = 1, seed: Int = 0) {
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.seed = seed
    }

    func validate() throws(MartletError) {
        func refuse(_ option: String, _ value: String, _ wanted: String) -> MartletError {
            MartletError(
                "\(option) cannot be \(value)", in: "--\(option)", because: "it must be \(wanted)",
                fix: "give \(wanted)")
        }
        guard temperature.isFinite, temperature >= 0 else { throw refuse("temperature", "\(temperature)", "0 or more") }
        guard topK >= 0 else { throw refuse("top-k", "\(topK)", "0 (all tokens) or more") }
        guard topP > 0, topP <= 1 else { throw refuse("top-p", "\(topP)", "above 0 and at most 1") }
    }
}

/// Draws tokens: temperature, then top-k, then top-p, in transformers' order. Equal logits rank by token id.
struct Sampler {
    private let settings: SamplingSettings
    private var random: RandomStream

    init(_ settings: SamplingSettings) throws(MartletError) {
        try settings.validate()
        self.settings = settings
        random = RandomStream(seed: UInt64(bitPattern: Int64(settings.seed)))
    }

    /// The next token's id.
    mutating func next(_ logits: [Float]) throws(MartletError) -> Int32 {
        var best = 0
        for (i, logit) in logits.enumerated() {
            guard logit.isFinite else { throw notFinite(i, logit) }
            if logit > logits[best] { best = i }
        }
        guard settings.temperature > 0, logits.count > 1 else { return Int32(best) }
        let candidates = candidates(logits, largest: logits[best])
        let total = candidates.reduce(0) { $0 + $1.weight }
        let threshold = Double(random.uniform()) * total
        var sum = 0.0
        for candidate in candidates {
            sum += candidate.weight
            if sum > threshold { return Int32(candidate.id) }
        }
        return Int32(candidates.last?.id ?? best)
    }

    /// The tokens that may be drawn, with weights proportional to their probabilities.
    private func candidates(_ logits: [Float], largest: Float) -> [(id: Int, weight: Double)] {
        var candidates = logits.enumerated().map { i, logit in
            (id: i, weight: (Double(logit - largest) / settings.temperature).exponential)
        }
        guard settings.topK > 0 || settings.topP < 1 else { return candidates }
        candidates.sort { ($1.weight, $0.id) < ($0.weight, $1.id) }
        if settings.topK > 0 { candidates = Array(candidates.prefix(settings.topK)) }
        guard settings.topP < 1 else { return candidates }
        let wanted = settings.topP * candidates.reduce(0) { $0 + $1.weight }
        var sum = 0.0, count = 0
        while count < candidates.count, sum < wanted {
            sum += candidates[count].weight
            count += 1
        }
        return Array(candidates.prefix(max(1, count)))
    }

    private func notFinite(_ token: Int, _ logit: Float) -> MartletError {
        MartletError(
            "the model's answer is not a number", in: "the logit of token \(token)", because: "it is \(logit)",
            fix: "check the weights with `martlet inspect`; a model or adapter whose training diverged cannot generate")
    }
}
