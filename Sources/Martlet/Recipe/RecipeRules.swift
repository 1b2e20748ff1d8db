public import MartletCore

extension Recipe {
    /// Refuses what is missing, contradictory, or without effect.
    public func validate() throws(MartletError) {
        try requireModelAndData()
        try checkMethod()
        try checkRouter()
        try checkSchedule()
        try checkValidation()
    }

    /// Whether the key was given, and not left at its default.
    package func gives(_ key: String) -> Bool { RecipeKey.key(named: key)?.isGiven(in: self) ?? false }

    private func requireModelAndData() throws(MartletError) {
        if model.isEmpty {
            throw MartletError(
                "the recipe names no model", fix: "add 'model: FOLDER', a folder with config.json and *.safetensors")
        }
        if dataset.isEmpty { throw MartletError("the recipe names no dataset", fix: "add 'dataset: FILE.jsonl'") }
    }

    private func checkMethod() throws(MartletError) {
        if method == .full {
            for key in ["lora_r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules"] where gives(key) {
                throw withoutEffect(key, because: "method is 'full': every weight is trained, there is no adapter")
            }
            for layout in export ?? [] where layout != .merged {
                throw refusal(
                    "export", "'\(layout.rawValue)' cannot be written",
                    because: "method is 'full': there is no adapter",
                    fix: "write 'export: [merged]', or train with 'method: lora'")
            }
        }
        if targetModules.count > 1, targetModules.contains("all-linear") {
            let others = targetModules.filter { $0 != "all-linear" }.joined(separator: ", ")
            throw refusal(
                "target_modules", "'\(others)' has no effect",
                because: "'all-linear' already stands for every projection",
                fix: "leave one or the other")
        }
        try checkRepeats("target_modules", targetModules)
        try checkRepeats("export", (export ?? []).map(\.rawValue))
        try checkRepeats("dataset", dataset)
    }

    private func checkRepeats(_ key: String, _ values: [String]) throws(MartletError) {
        var seen = Set<String>()
        for value in values where !seen.insert(value).inserted {
            throw refusal(
                key, "'\(value)' stands twice in '\(key)'", because: "once is enough", fix: "delete one of them")
        }
    }

    private func checkRouter() throws(MartletError) {
        if trainRouter {
            for layout in export ?? [] where layout != .merged {
                throw refusal(
                    "export", "'\(layout.rawValue)' would lose the trained routers",
                    because: "train_router is true, and an adapter file cannot hold whole weights",
                    fix: "write 'export: [merged]', or delete 'train_router'")
            }
            return
        }
        for key in ["router_aux_loss_coef", "router_z_loss_coef"] where gives(key) {
            throw withoutEffect(
                key, because: "train_router is false: the routers are frozen",
                fix: "add 'train_router: true', or delete '\(key)'")
        }
    }

    private func checkSchedule() throws(MartletError) {
        if gives("num_train_epochs"), gives("max_steps") {
            throw withoutEffect("num_train_epochs", because: "max_steps says how long to train")
        }
        if gives("warmup_steps"), gives("warmup_ratio") {
            throw withoutEffect("warmup_ratio", because: "warmup_steps says how long the warmup is")
        }
        if lrSchedulerType == .constant {
            for key in ["warmup_steps", "warmup_ratio"] where gives(key) && (warmupSteps > 0 || warmupRatio > 0) {
                throw withoutEffect(
                    key, because: "lr_scheduler_type 'constant' has no warmup",
                    fix: "write 'lr_scheduler_type: constant_with_warmup'")
            }
        }
        if lrSchedulerType == .constantWithWarmup, warmupSteps == 0, warmupRatio == 0 {
            throw withoutEffect(
                "lr_scheduler_type", because: "'constant_with_warmup' has no warmup to do",
                fix: "add 'warmup_steps: N', or write 'lr_scheduler_type: constant'")
        }
    }

    private func checkValidation() throws(MartletError) {
        if !evalDataset.isEmpty, evalFraction > 0 {
            throw withoutEffect("eval_fraction", because: "eval_dataset is the validation data")
        }
        guard !validates else { return }
        for key in ["eval_steps", "early_stopping_patience", "load_best_model_at_end"] where gives(key) {
            if key == "load_best_model_at_end", !loadBestModelAtEnd { continue }
            throw withoutEffect(
                key, because: "there is no validation data",
                fix: "add 'eval_dataset: FILE' or 'eval_fraction: 0.05', or delete '\(key)'")
        }
    }

    private func withoutEffect(_ key: String, because reason: String, fix: String? = nil) -> MartletError {
        refusal(key, "'\(key)' has no effect", because: reason, fix: fix ?? "delete '\(key)'")
    }

    /// An error placed at the key.
    package func refusal(_ key: String, _ problem: String, because reason: String, fix: String) -> MartletError {
        MartletError(problem, in: places[key] ?? "recipe, key \"\(key)\"", because: reason, fix: fix)
    }

    /// Refuses a target that matches nothing in the model; `available` are the projections and groups it has.
    package func checkTargets(_ available: [String]) throws(MartletError) {
        guard method == .lora else { return }
        for target in targetModules where !available.contains(target) {
            throw refusal(
                "target_modules", "adapter target '\(target)' matches no layer",
                because: "this model has: " + available.joined(separator: ", "),
                fix: closestMatch(to: target, among: available).map { "did you mean '\($0)'?" } ?? "name one of these")
        }
    }
}
