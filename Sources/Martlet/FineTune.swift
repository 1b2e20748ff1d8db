public import MartletCore

/// A fine-tuning run, from a recipe to an adapter.
///
/// ```swift
/// var recipe = Recipe(model: "Qwen3-30B-A3B", dataset: ["chats.jsonl"])
/// recipe.loraR = 16
/// recipe.outputDir = "output"
/// let result = try FineTune(recipe: recipe).run { event in
///     if case .step(let step) = event { print(step.step, step.loss) }
///     return .proceed
/// }
/// print(result.exports)
/// ```
public final class FineTune: Sendable {
    /// What was asked for.
    public let recipe: Recipe
    private let switched = StopSwitch()

    /// A run of this recipe; refuses one that is contradictory or incomplete.
    public init(recipe: Recipe) throws(MartletError) {
        try recipe.validate()
        self.recipe = recipe
    }

    /// What the run would do and need, without starting it. Reads the dataset, but no weight.
    public func plan() throws(MartletError) -> RunPlan {
        try Assembly(recipe: recipe).plan(try Assembly.ModelText(folder: recipe.model, now: recipe.startDate))
    }

    /// Asks the run to finish its step, save and leave; safe from any thread and from a signal handler.
    public func stop() { switched.stop() }

    /// Trains to the end, or until somebody asks to stop, and tells everything on the way. Blocks its thread.
    @discardableResult
    public func run(
        _ onEvent: (TrainingEvent) -> TrainingAnswer = { _ in .proceed }
    ) throws(MartletError) -> TrainingResult {
        let assembly = Assembly(recipe: recipe)
        let parts = try assembly.parts(try Assembly.ModelText(folder: recipe.model, now: recipe.startDate))
        return try train(recipe, parts, stop: switched, onEvent: onEvent)
    }
}
