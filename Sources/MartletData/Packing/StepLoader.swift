package import MartletCore

/// How examples become steps.
package struct StepSettings: Sendable, Equatable {
    /// Rows (of at most `max_length` tokens) of a batch, and batches of an optimizer step.
    package var batchSize = 1
    package var gradientAccumulation = 1
    /// Puts several examples into a row. They do not see each other either way.
    package var packs = true
    package var shuffles = true
    package var seed: UInt64 = 0

    package init(
        batchSize: Int = 1, gradientAccumulation: Int = 1, packs: Bool = true, shuffles: Bool = true, seed: UInt64 = 0
    ) {
        self.batchSize = batchSize
        self.gradientAccumulation = gradientAccumulation
        self.packs = packs
        self.shuffles = shuffles
        self.seed = seed
    }
}

/// The steps of a training run, each made from its index alone: a resumed run gets the same bytes.
///
/// Rows are made once: the examples, shuffled by the seed, are taken in windows of `packingWindow` and each window is packed
/// by best fit, decreasing. Every epoch then takes the rows in an order of its own. The last step of an epoch may
/// hold fewer rows. A row is no unit of computation here: examples are laid end to end without padding.
package final class StepLoader: Sendable {
    /// Examples that are packed together. Larger wastes less of the rows' ends and more time at start.
    package static let packingWindow = 16384

    package let examples: ExampleSet
    package let settings: StepSettings
    /// Tells whether a resumed run goes on with the same data and settings.
    package let fingerprint: String
    /// Examples of row r are `items[rowOffsets[r] ..< rowOffsets[r + 1]]`.
    private let items: [Int32]
    private let rowOffsets: [Int]

    package init(examples: ExampleSet, settings: StepSettings) throws(MartletError) {
        let rows = settings.batchSize.multipliedReportingOverflow(by: settings.gradientAccumulation)
        guard settings.batchSize > 0, settings.gradientAccumulation > 0, !rows.overflow, rows.partialValue < 1 << 31
        else {
            throw MartletError(
                "a step needs at least one row",
                because: "batch size is \(settings.batchSize), gradient accumulation \(settings.gradientAccumulation)",
                fix: "set both to 1 or more")
        }
        self.examples = examples
        self.settings = settings
        (items, rowOffsets) = settings.packs ? StepLoader.packed(examples, settings) : StepLoader.unpacked(examples)
        var fingerprint = Fingerprint()
        fingerprint.add(examples.fingerprint)
        fingerprint.add("\(rows.partialValue) \(settings.packs) \(settings.shuffles) \(settings.seed)")
        self.fingerprint = fingerprint.text
    }

    package var rowsPerStep: Int { settings.batchSize * settings.gradientAccumulation }
    package var rowCount: Int { rowOffsets.count - 1 }
    package var stepsPerEpoch: Int { ceilDiv(rowCount, rowsPerStep) }

    /// The share of the rows' room that holds tokens, 0 to 1.
    package var fill: Double {
        let tokens = (0..<examples.count).reduce(0) { $0 + examples.length($1) }
        return Double(tokens) / Double(max(1, rowCount * examples.dataset.settings.maxLength))
    }

    /// The step with this index, counted from the start of training through all epochs.
    package func step(_ index: Int) throws(MartletError) -> PackedStep {
        var step = PackedStep()
        for item in try exampleIndices(step: index) {
            let example = try examples.example(item)
            step.append(example.tokens, isTrained: example.isTrained)
        }
        return step
    }

    /// The examples (indices into `examples`) of a step.
    package func exampleIndices(step index: Int) throws(MartletError) -> [Int] {
        guard index >= 0, stepsPerEpoch > 0 else {
            throw MartletError("there is no step \(index)", because: "steps count from 0", fix: "train on some data")
        }
        let (epoch, place) = index.quotientAndRemainder(dividingBy: stepsPerEpoch)
        let order = IndexPermutation(count: rowCount, seed: settings.seed, stream: UInt64(epoch))
        let first = place * rowsPerStep
        return (first..<min(first + rowsPerStep, rowCount)).flatMap { slot in
            let row = settings.shuffles ? order[slot] : slot
            return items[rowOffsets[row]..<rowOffsets[row + 1]].map(Int.init)
        }
    }

    private static func unpacked(_ examples: ExampleSet) -> (items: [Int32], rowOffsets: [Int]) {
        ((0..<examples.count).map(Int32.init), Array(0...examples.count))
    }

    private static func packed(_ examples: ExampleSet, _ settings: StepSettings) -> (items: [Int32], rowOffsets: [Int])
    {
        let capacity = examples.dataset.settings.maxLength
        let order = IndexPermutation(count: examples.count, seed: settings.seed, stream: ShuffleStream.packing)
        var items: [Int32] = [], rowOffsets = [0]
        for start in stride(from: 0, to: examples.count, by: packingWindow) {
            let window = (start..<min(start + packingWindow, examples.count)).map { settings.shuffles ? order[$0] : $0 }
            var bins = bestFitDecreasing(lengths: window.map(examples.length), capacity: capacity)
            // Without shuffling the rows stay near the order of the file.
            if !settings.shuffles { bins = bins.map { $0.sorted() }.sorted { $0[0] < $1[0] } }
            for bin in bins {
                items += bin.map { Int32(window[$0]) }
                rowOffsets.append(items.count)
            }
        }
        return (items, rowOffsets)
    }
}
