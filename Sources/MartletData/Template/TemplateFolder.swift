package import MartletCore

extension ChatTemplate {
    /// Reads the template of a model folder.
    ///
    /// `chat_template.jinja` beats "chat_template" in `tokenizer_config.json`, which may be a list of named templates.
    /// Without a name, the one called "default" is taken, and "tool_use", if there is one, when tools are given. The
    /// special tokens of `tokenizer_config.json` become variables of the template.
    package init(folder: String, name: String? = nil) throws(MartletError) {
        let configPath = folder + "/tokenizer_config.json"
        let config = try ChatTemplate.readText(configPath)
        var json = JSON.object([:])
        if let config {
            do throws(MartletError) { json = try JSON(parsing: config) } catch { throw error.at(configPath) }
        }
        let tokens = ChatTemplate.specialTokens(of: json)
        let file = name.map { "additional_chat_templates/\($0).jinja" } ?? "chat_template.jinja"
        if let source = try ChatTemplate.readText(folder + "/" + file) {
            let toolSource =
                name == nil ? try ChatTemplate.readText(folder + "/additional_chat_templates/tool_use.jinja") : nil
            try self.init(source: source, name: folder + "/" + file, toolSource: toolSource, specialTokens: tokens)
            return
        }
        let named = ChatTemplate.templates(of: json)
        let wanted = name ?? "default"
        guard
            let source = named.first(where: { $0.name == wanted })?.source
                ?? (name == nil && named.count == 1 ? named[0].source : nil)
        else { throw ChatTemplate.missing(name, named.map(\.name), folder, config != nil) }
        let toolSource = name == nil ? named.first { $0.name == "tool_use" }?.source : nil
        try self.init(
            source: source, name: configPath + ", chat_template", toolSource: toolSource, specialTokens: tokens)
    }

    private static func missing(_ name: String?, _ names: [String], _ folder: String, _ hasConfig: Bool) -> MartletError
    {
        if !names.isEmpty {
            let hint = closestMatch(to: name ?? "default", among: names) ?? names[0]
            return MartletError(
                "there is no chat template named '\(name ?? "default")'", in: folder + "/tokenizer_config.json",
                because: "it has: " + names.joined(separator: ", "), fix: "name one of them, for instance '\(hint)'")
        }
        return MartletError(
            "the model has no chat template", in: folder,
            because: hasConfig
                ? "there is no chat_template.jinja, and tokenizer_config.json has no \"chat_template\""
                : "there is neither a chat_template.jinja nor a tokenizer_config.json",
            fix: "put a chat_template.jinja there, for instance from the model's instruct version")
    }

    private static func templates(of config: JSON) -> [(name: String, source: String)] {
        switch config["chat_template"] {
        case .string(let source): [("default", source)]
        case .array(let list):
            list.compactMap { entry in
                guard let name = entry["name"]?.string, let source = entry["template"]?.string else { return nil }
                return (name, source)
            }
        default: []
        }
    }

    /// The special tokens by their names; each is a string or an object with "content".
    private static func specialTokens(of config: JSON) -> JSONObject {
        let names = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]
        var tokens: JSONObject = [:]
        for name in names {
            if let text = config[name]?.string ?? config[name]?["content"]?.string { tokens[name] = .string(text) }
        }
        return tokens
    }

    /// A text file, or nil if there is none.
    private static func readText(_ path: String) throws(MartletError) -> String? {
        guard FileSystem.exists(path) else { return nil }
        guard let text = String(validating: try FileSystem.read(path), as: UTF8.self) else {
            throw MartletError("a file is not UTF-8 text", in: path, fix: "download it again")
        }
        return text
    }
}
