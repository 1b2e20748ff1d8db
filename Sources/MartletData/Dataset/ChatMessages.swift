import MartletCore

private let chatRoles = ["system", "developer", "user", "assistant", "tool"]

/// Checks one message and makes it uniform: `content` is a string or null (parts of text are joined), and keys
/// with null are dropped.
func chatMessage(_ message: JSON, number: Int) throws(MartletError) -> JSON {
    guard let object = message.object else {
        throw MartletError(
            "a message is not an object", because: "message \(number) is \(message.kind)",
            fix: "write it as {\"role\": ..., \"content\": ...}")
    }
    guard let role = object["role"]?.string, chatRoles.contains(role) else {
        throw unknownRole(object["role"], key: "role", number: number, known: chatRoles)
    }
    var result: JSONObject = ["role": .string(role)]
    let hasReasoning = try checkReasoning(object, number: number)
    let calls = try toolCalls(object["tool_calls"], number: number)
    let content = try contentText(object["content"], number: number)
    guard content != nil || calls != nil || hasReasoning else {
        throw MartletError(
            "a message has no content", because: "message \(number) (\(role)) has neither content nor tool_calls",
            fix: "give it a string, or a list of {\"type\": \"text\", \"text\": ...}")
    }
    result["content"] = content.map(JSON.string) ?? .null
    for (key, value) in object where result[key] == nil && !value.isNull { result[key] = value }
    result["tool_calls"] = calls
    return .object(result)
}

/// Whether the message holds reasoning, under any of its names.
private func checkReasoning(_ message: JSONObject, number: Int) throws(MartletError) -> Bool {
    var found = false
    for key in ["reasoning_content", "reasoning", "thinking"] {
        guard let value = message[key], !value.isNull else { continue }
        guard value.string != nil else {
            throw MartletError(
                "a message's reasoning is not a string", because: "'\(key)' of message \(number) is \(value.kind)",
                fix: "make it a string")
        }
        found = true
    }
    return found
}

private func contentText(_ content: JSON?, number: Int) throws(MartletError) -> String? {
    guard let content, !content.isNull else { return nil }
    if let text = content.string { return text }
    guard let parts = content.array else {
        throw MartletError(
            "a message's content is neither text nor parts", because: "message \(number) has \(content.kind)",
            fix: "give it a string, or a list of {\"type\": \"text\", \"text\": ...}")
    }
    var text = ""
    for part in parts {
        if let piece = part.string { text += piece; continue }
        guard part["type"]?.string ?? "text" == "text", let piece = part["text"]?.string else {
            throw MartletError(
                "a message has a part that is not text",
                because: "message \(number) has a part of type '\(part["type"]?.string ?? part.kind)'",
                fix: "only text can be trained on: leave such rows out")
        }
        text += piece
    }
    return text
}

/// The tool calls of a message, each as {type, function: {name, arguments}}; nil for none.
private func toolCalls(_ value: JSON?, number: Int) throws(MartletError) -> JSON? {
    guard let value, !value.isNull, value != .array([]) else { return nil }
    let bad = MartletError(
        "a message's tool_calls are malformed", because: "message \(number) has a call without a function name",
        fix: "write [{\"type\": \"function\", \"function\": {\"name\": ..., \"arguments\": {...}}}]")
    guard let list = value.array else { throw bad }
    var calls: [JSON] = []
    for call in list {
        if call["function"]?["name"]?.string != nil {
            calls.append(call)
        } else if call["name"]?.string != nil {
            calls.append(["type": "function", "function": call])
        } else {
            throw bad
        }
    }
    return .array(calls)
}

private let shareGPTRoles = [
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "chatgpt": "assistant", "system": "system", "developer": "developer", "tool": "tool", "observation": "tool",
    "function_response": "tool", "function_call": "assistant",
]

/// A turn of ShareGPT, {from, value}, as a message. A turn that has a role is a message already.
func shareGPTMessage(_ turn: JSON, number: Int) throws(MartletError) -> JSON {
    if turn["role"] != nil { return try chatMessage(turn, number: number) }
    guard let from = turn["from"]?.string, let role = shareGPTRoles[from] else {
        throw unknownRole(turn["from"], key: "from", number: number, known: shareGPTRoles.keys.sorted())
    }
    guard let value = turn["value"]?.string else {
        throw MartletError(
            "a turn has no value", because: "turn \(number) has \(turn["value"].map(\.kind) ?? "no key 'value'")",
            fix: "write it as {\"from\": ..., \"value\": \"text\"}")
    }
    guard from == "function_call" else { return ["role": .string(role), "content": .string(value)] }
    guard let call = try? JSON(parsing: value), call["name"]?.string != nil else {
        throw MartletError(
            "a function_call is not a call", because: "the value of turn \(number) is no JSON object with a name",
            fix: "write it as {\"name\": ..., \"arguments\": {...}}")
    }
    return ["role": .string(role), "content": .null, "tool_calls": [["type": "function", "function": call]]]
}

private func unknownRole(_ value: JSON?, key: String, number: Int, known: [String]) -> MartletError {
    let found = value?.string.map { "'\($0)'" } ?? value?.kind ?? "nothing"
    return MartletError(
        "a message has an unknown role", because: "'\(key)' of message \(number) is \(found)",
        fix: "use one of: \(known.joined(separator: ", "))")
}
