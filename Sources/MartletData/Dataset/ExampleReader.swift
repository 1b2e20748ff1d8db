import MartletCore

/// Turns rows of one format into examples. What it throws says what the row should have had; the file and line are
/// added by the caller.
struct ExampleReader: Sendable {
    let format: DatasetFormat
    let columns: ColumnNames

    func example(_ row: JSONObject) throws(MartletError) -> Example {
        try checkColumns(row)
        switch format {
        case .chat: return try chat(row)
        case .shareGPT: return try shareGPT(row)
        case .promptCompletion: return try promptCompletion(row)
        case .alpaca: return try alpaca(row)
        case .text: return .text(try string(row, "text"), startsDocument: true, endsDocument: true)
        }
    }

    private func checkColumns(_ row: JSONObject) throws(MartletError) {
        for column in format.requiredColumns where row[columns[column]] == nil {
            let keys = row.keys.map { "'\($0)'" }.joined(separator: ", ")
            throw MartletError(
                "a row lacks the column '\(columns[column])'",
                because: "the format is \(format.rawValue); the row has \(keys.isEmpty ? "no columns" : keys)",
                fix: "give every row of the file the same format")
        }
    }

    private func chat(_ row: JSONObject) throws(MartletError) -> Example {
        guard let list = try decodedText(row[columns["messages"]])?.array, !list.isEmpty else {
            throw notMessages("messages", row)
        }
        var messages: [JSON] = []
        for (i, message) in list.enumerated() { messages.append(try chatMessage(message, number: i + 1)) }
        return .conversation(try conversation(messages, row))
    }

    private func shareGPT(_ row: JSONObject) throws(MartletError) -> Example {
        guard let list = try decodedText(row[columns["conversations"]])?.array, !list.isEmpty else {
            throw notMessages("conversations", row)
        }
        var messages: [JSON] = []
        for (i, turn) in list.enumerated() { messages.append(try shareGPTMessage(turn, number: i + 1)) }
        if let system = try optionalString(row, "system"), !system.isEmpty {
            messages.insert(["role": "system", "content": .string(system)], at: 0)
        }
        return .conversation(try conversation(messages, row))
    }

    private func promptCompletion(_ row: JSONObject) throws(MartletError) -> Example {
        let prompt = row[columns["prompt"]] ?? .null, completion = row[columns["completion"]] ?? .null
        if let prompt = prompt.string, let completion = completion.string {
            return .completion(prompt: prompt, completion: completion, separator: "")
        }
        guard let before = prompt.array, let after = completion.array, !after.isEmpty else {
            throw MartletError(
                "prompt and completion do not fit together",
                because: "the prompt is \(prompt.kind), the completion \(completion.isNull ? "null" : completion.kind)",
                fix: "make both strings, or both lists of messages (the completion not empty)")
        }
        var messages: [JSON] = []
        for (i, message) in (before + after).enumerated() { messages.append(try chatMessage(message, number: i + 1)) }
        return .conversation(try conversation(messages, row, firstTrained: before.count))
    }

    private func alpaca(_ row: JSONObject) throws(MartletError) -> Example {
        let instruction = try string(row, "instruction"), output = try string(row, "output")
        let input = try optionalString(row, "input") ?? ""
        let prompt = input.isEmpty ? instruction : "\(instruction)\n\n\(input)"
        guard let system = try optionalString(row, "system"), !system.isEmpty else {
            return .completion(prompt: prompt, completion: output, separator: "\n\n")
        }
        let messages: [JSON] = [
            ["role": "system", "content": .string(system)], ["role": "user", "content": .string(prompt)],
            ["role": "assistant", "content": .string(output)],
        ]
        return .conversation(Conversation(messages: messages))
    }

    private func conversation(
        _ messages: [JSON], _ row: JSONObject, firstTrained: Int = 0
    ) throws(MartletError) -> Conversation {
        var conversation = Conversation(messages: messages, firstTrained: firstTrained)
        if let tools = try decodedText(row[columns["tools"]]), !tools.isNull {
            guard let list = tools.array else { throw wrongKind("tools", tools, "a list of tools, or its JSON text") }
            conversation.tools = list.isEmpty ? nil : tools
        }
        if let variables = row[columns["chat_template_kwargs"]], !variables.isNull {
            guard let object = variables.object else { throw wrongKind("chat_template_kwargs", variables, "an object") }
            conversation.variables = object
        }
        return conversation
    }

    /// A column that may hold its list as JSON text, as in CSV files; the value itself if it is no text.
    private func decodedText(_ value: JSON?) throws(MartletError) -> JSON? {
        guard let text = value?.string else { return value }
        if text.allSatisfy(\.isWhitespace) { return .null }
        do throws(MartletError) {
            return try JSON(parsing: text)
        } catch {
            throw MartletError(
                "a column is not valid JSON text", because: "\(error.location ?? ""): \(error.reason ?? "")",
                fix: "write lists in this column as JSON")
        }
    }

    private func string(_ row: JSONObject, _ column: String) throws(MartletError) -> String {
        let value = row[columns[column]] ?? .null
        guard let text = value.string else { throw wrongKind(column, value, "a string") }
        return text
    }

    private func optionalString(_ row: JSONObject, _ column: String) throws(MartletError) -> String? {
        guard let value = row[columns[column]], !value.isNull else { return nil }
        guard let text = value.string else { throw wrongKind(column, value, "a string") }
        return text
    }

    private func wrongKind(_ column: String, _ value: JSON, _ wanted: String) -> MartletError {
        MartletError(
            "a column holds the wrong kind of value", because: "'\(columns[column])' is \(value.kind)",
            fix: "make it \(wanted)")
    }

    private func notMessages(_ column: String, _ row: JSONObject) -> MartletError {
        let value = row[columns[column]] ?? .null
        return MartletError(
            "a row has no messages",
            because: "'\(columns[column])' is \(value.array?.isEmpty == true ? "an empty list" : value.kind)",
            fix: "make it a list of messages")
    }
}
