package import MartletCore
package import MartletData

/// Everything a run is made of, put together before the first step.
package struct TrainingParts {
    package var model: any TrainableModel
    package var training: any StepSource
    package var validation: (any StepSource)?
    package var memory: MemoryPlan
    /// Numbers in the whole model, the trained ones included.
    package var totalParameterCount: Int
    /// What the dataset turned out to be.
    package var data: [TrainingOverview.Row]
    /// What the model is, for the report.
    package var facts: [TrainingOverview.Row]
    /// What a person should know of the way in which it is computed; told before step 1.
    package var remarks: [String] = []
    /// The time that the chat template wrote into the data; nil if it wrote none.
    package var templateDate: TemplateDate?
    /// Writes the result into the output folder, returns what was written.
    package var export: (_ outputFolder: String) throws(MartletError) -> [String]
    /// Has the model, as it is now, continue a few prompts for the report; asked for before step 1 and at the end.
    package var samples: () throws(MartletError) -> [SampleText] = { () throws(MartletError) in [] }

    package init(
        model: any TrainableModel, training: any StepSource, validation: (any StepSource)? = nil, memory: MemoryPlan,
        totalParameterCount: Int, data: [TrainingOverview.Row] = [], facts: [TrainingOverview.Row] = [],
        export: @escaping (_ outputFolder: String) throws(MartletError) -> [String]
    ) {
        self.model = model
        self.training = training
        self.validation = validation
        self.memory = memory
        self.totalParameterCount = totalParameterCount
        self.data = data
        self.facts = facts
        self.export = export
    }
}

/// Trains, from parts that are put together already.
package func train(
    _ recipe: Recipe, _ parts: TrainingParts, stop: StopSwitch, onEvent: (TrainingEvent) -> TrainingAnswer
) throws(MartletError) -> TrainingResult {
    try withoutActuallyEscaping(onEvent) { (onEvent) throws(MartletError) in
        try Trainer(recipe, parts, stop: stop, tell: onEvent).run()
    }
}
