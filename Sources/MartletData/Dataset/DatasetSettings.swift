import MartletCore

/// Which tokens count in the loss.
package enum LossScope: String, Sendable, CaseIterable {
    /// Every assistant message with its end-of-turn token; of a prompt/completion pair, the completion.
    case assistant
    /// The last assistant message only.
    case lastAssistant = "last_assistant"
    /// Every token.
    case all
}

/// What happens to an example of more than `maxLength` tokens.
package enum LongExamples: String, Sendable, CaseIterable {
    /// Its first `maxLength` tokens are kept.
    case truncate
    case drop
    /// It becomes several examples of at most `maxLength` tokens, each starting with the last token of the one before;
    /// for raw text only.
    case split
}

/// What a plain text file is divided into.
package enum TextDocuments: String, Sendable, CaseIterable {
    /// The file is one document.
    case wholeFile = "whole_file"
    /// Empty lines separate documents.
    case blankLine = "blank_line"
}

/// How files become tokenised examples.
package struct DatasetSettings: Sendable, Equatable {
    /// The most tokens of an example.
    package var maxLength: Int
    /// nil detects the format from the first row of each file.
    package var format: DatasetFormat?
    package var columns = ColumnNames()
    /// nil is `.assistant`, and `.all` for raw text, which has no other.
    package var loss: LossScope?
    /// nil splits raw text and truncates everything else.
    package var longExamples: LongExamples?
    package var textDocuments = TextDocuments.wholeFile
    /// Skips and counts bad rows; otherwise the first one is an error.
    package var skipsBadRows = false
    /// Bytes of tokens kept in memory (4 a token); more are kept in a temporary file.
    package var memoryBudget = 256 << 20

    package init(maxLength: Int) { self.maxLength = maxLength }

    func validate() throws(MartletError) {
        guard maxLength >= 2, maxLength <= 1 << 24 else {
            throw MartletError(
                "max_length must be between 2 and \(1 << 24)", because: "it is \(maxLength)",
                fix: "set max_length to the context you train on, for example 2048")
        }
    }
}
