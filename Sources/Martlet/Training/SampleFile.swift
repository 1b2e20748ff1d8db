internal import MartletCore

/// A prompt, and how a model continued it.
package struct SampleText: Sendable, Equatable {
    package var prompt: String
    package var text: String

    package init(prompt: String, text: String) {
        self.prompt = prompt
        self.text = text
    }
}

/// What the model wrote before the training, kept in the run's folder for a report after a resume: samples.json.
struct SampleFile {
    let path: String

    init(folder: String) { path = FileSystem.join(folder, "samples.json") }

    func write(_ samples: [SampleText]) throws(MartletError) {
        let list = samples.map { ["prompt": .string($0.prompt), "before": .string($0.text)] as JSON }
        try AtomicFile.write(JSON.array(list).text(.pretty) + "\n", to: path)
    }

    /// Nothing where there is no such file: a report without samples is better than no report.
    func read() -> [SampleText] {
        let list = (try? FileSystem.readJSON(path))?.array ?? []
        return list.compactMap { sample in
            guard let prompt = sample["prompt"]?.string, let text = sample["before"]?.string else { return nil }
            return SampleText(prompt: prompt, text: text)
        }
    }
}
