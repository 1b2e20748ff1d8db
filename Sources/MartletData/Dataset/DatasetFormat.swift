package import MartletCore

/// What a row of a dataset means.
package enum DatasetFormat: String, Sendable, CaseIterable {
    /// `messages`: a list of {role, content}.
    case chat
    /// `conversations`: a list of {from, value}.
    case shareGPT = "sharegpt"
    /// `prompt` and `completion`: strings, or lists of messages.
    case promptCompletion = "prompt_completion"
    /// `instruction`, `input` (may be absent or empty), `output`.
    case alpaca
    /// `text`: raw text.
    case text

    /// The columns every row must have.
    package var requiredColumns: [String] {
        switch self {
        case .chat: ["messages"]
        case .shareGPT: ["conversations"]
        case .promptCompletion: ["prompt", "completion"]
        case .alpaca: ["instruction", "output"]
        case .text: ["text"]
        }
    }

    /// The first format, in the order above, whose columns the row has.
    static func detect(_ row: JSONObject, columns: ColumnNames) -> DatasetFormat? {
        allCases.first { $0.requiredColumns.allSatisfy { row[columns[$0]] != nil } }
    }

    /// The columns of every format, for messages: "messages; conversations; prompt, completion; ...".
    static var knownColumns: String {
        allCases.map { "\($0.requiredColumns.joined(separator: " + "))" }.joined(separator: ", or ")
    }
}

/// Other names of columns: from the name Martlet knows to the name in the file.
package struct ColumnNames: Sendable, Equatable {
    /// The names Martlet knows.
    package static let known = [
        "messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text", "system",
        "tools",
        "chat_template_kwargs",
    ]

    private let names: [String: String]

    package init() { names = [:] }

    /// Throws if a key is not a name Martlet knows.
    package init(_ names: [String: String]) throws(MartletError) {
        for key in names.keys.sorted() where !ColumnNames.known.contains(key) {
            let guess = closestMatch(to: key, among: ColumnNames.known).map { "did you mean '\($0)'? " } ?? ""
            throw MartletError(
                "no format has a column '\(key)'",
                because: "the columns are: \(ColumnNames.known.joined(separator: ", "))",
                fix: "\(guess)write the mapping as NAME_ABOVE: name_in_your_file")
        }
        self.names = names
    }

    /// The name in the file.
    package subscript(_ column: String) -> String { names[column] ?? column }

    /// "output=answer" for every column with another name, sorted.
    var listing: [String] { names.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" } }
}
