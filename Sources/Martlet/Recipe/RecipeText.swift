package import MartletCore

extension Recipe {
    /// The recipe as the run uses it, every key with its value and whether it was given, as YAML that can be run again.
    public var yaml: String {
        var lines = ["# The effective recipe. Lines marked 'default' were not given."]
        var section = ""
        for key in RecipeKey.all {
            if key.section != section {
                lines += ["", "# \(key.section)"]
                section = key.section
            }
            lines.append(line(for: key))
        }
        return lines.joined(separator: "\n") + "\n"
    }

    private func line(for key: RecipeKey) -> String {
        let isGiven = key.isGiven(in: self)
        let value = key.value(in: resolved)
        // What has no value, or would contradict what was given, stands as a comment: the file must be a valid recipe.
        let isEmpty = value == .null || value == .array([]) || value == .object([:])
        let shown = isEmpty ? (key.defaultNote ?? "none") : value.text()
        let isUnused = !isGiven && (isEmpty || Recipe.unusedUnlessGiven.contains(key.name))
        return (isUnused ? "# " : "") + "\(key.name): \(shown)" + (isGiven ? "" : "  # default")
    }

    /// Keys whose default may stand beside a given key that takes their place.
    private static let unusedUnlessGiven: Set<String> = [
        "num_train_epochs", "warmup_steps", "warmup_ratio", "lora_r", "lora_alpha", "lora_dropout", "use_rslora",
        "target_modules", "router_z_loss_coef", "eval_fraction", "load_best_model_at_end",
    ]

    /// Every key and its value, for trainer_state.json.
    package var json: JSON {
        var object = JSONObject()
        for key in RecipeKey.all { object[key.name] = key.value(in: resolved) }
        return .object(object)
    }

    /// The keys that may not change on resume and differ from those of `saved`: (key, saved value, value now).
    package func differencesOnResume(from saved: JSON) -> [(key: String, before: String, now: String)] {
        RecipeKey.all.filter(\.isFixedForResume).compactMap { key in
            let now = key.value(in: resolved)
            // A key that the older version did not know had its default then.
            let before = saved[key.name] ?? key.value(in: Recipe().resolved)
            // 1 and 1.0 are the same number, whichever way JSON gave it back.
            let isSame = before == now || (before.number != nil && before.number == now.number)
            return isSame ? nil : (key.name, before.text(), now.text())
        }
    }

    /// The table of keys as text: name, type, default, meaning.
    public static var help: String {
        var lines: [String] = [], section = ""
        for key in RecipeKey.all {
            if key.section != section {
                lines += (section.isEmpty ? [] : [""]) + [key.section]
                section = key.section
            }
            lines.append(
                "  \(key.name): \(key.type)" + (key.shownDefault.isEmpty ? "" : "  (default: \(key.shownDefault))"))
            lines.append("      \(key.meaning)")
        }
        return lines.joined(separator: "\n") + "\n"
    }
}

extension RecipeKey {
    /// The default as people read it; empty where the key has none.
    package var shownDefault: String {
        if let defaultNote { return defaultNote }
        switch defaultValue {
        case .null: return ""
        case .string(let text): return text
        case .array(let items): return items.compactMap(\.string).joined(separator: ", ")
        case .object(let object): return object.count == 0 ? "" : defaultValue.text()
        default: return defaultValue.text()
        }
    }
}
