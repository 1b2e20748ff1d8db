import Martlet
import MartletCore
import Testing

private let minimal = "model: /models/tiny\ndataset: data.jsonl\n"

@Suite struct RecipeTests {
    private func failure(
        _ yaml: String, overrides: [String] = [], _ location: SourceLocation = #_sourceLocation
    ) -> MartletError? {
        errorOf({ _ = try Recipe(yaml: yaml, name: "recipe.yaml", overrides: overrides) }, sourceLocation: location)
    }

    @Test func readsEveryKind() throws {
        let recipe = try Recipe(
            yaml: minimal + """
                method: lora
                learning_rate: 1e-4
                num_train_epochs: 2.5
                packing: false
                target_modules: [q_proj, v_proj]
                columns: {prompt: question, completion: answer}
                lr_scheduler_type: cosine
                optim: adamw_8bit
                export: per_expert
                memory_limit: 1.5GiB
                eval_fraction: 0.1
                eval_steps: 20
                seed: 7
                """)
        #expect(recipe.model == "/models/tiny")
        #expect(recipe.dataset == ["data.jsonl"])
        #expect(recipe.learningRate == 1e-4)
        #expect(recipe.numTrainEpochs == 2.5)
        #expect(!recipe.packing)
        #expect(recipe.targetModules == ["q_proj", "v_proj"])
        #expect(recipe.columns == ["prompt": "question", "completion": "answer"])
        #expect(recipe.lrSchedulerType == .cosine && recipe.optim == .adamw8Bit)
        #expect(recipe.export == [.perExpert])
        #expect(recipe.memoryLimit == 3 << 29)
        #expect(recipe.evalSteps == 20)
        #expect(recipe.seed == 7)
    }

    @Test func overridesWin() throws {
        let recipe = try Recipe(yaml: minimal + "lora_r: 8\n", overrides: ["lora_r=4", "dataset=[a.jsonl, b.jsonl]"])
        #expect(recipe.loraR == 4)
        #expect(recipe.dataset == ["a.jsonl", "b.jsonl"])
    }

    @Test func unknownKeyNamesLineAndNeighbour() throws {
        let error = try #require(failure(minimal + "\nlerning_rate: 1e-4\n"))
        #expect(error.location == "recipe.yaml, line 4")
        #expect(error.remedy == "did you mean 'learning_rate'?")
        #expect(failure(minimal, overrides: ["lora_rank_of_it=3"])?.location == "--set lora_rank_of_it=3")
    }

    @Test(arguments: [
        ("lora_r: many", "'lora_r' cannot be 'many'"), ("lora_r: 0", "'lora_r' cannot be '0'"),
        ("lora_r: 1.5", "'lora_r' cannot be '1.5'"), ("learning_rate: -1", "'learning_rate' cannot be '-1'"),
        ("learning_rate: .nan", "'learning_rate' cannot be '.nan'"), ("packing: maybe", "'packing' cannot be 'maybe'"),
        ("packing: no", "'packing' cannot be 'no'"), ("method: lorra", "'method' cannot be 'lorra'"),
        ("target_modules: []", "'target_modules' cannot be a list"), ("columns: [a]", "'columns' cannot be a list"),
        ("lora_r: [1]", "'lora_r' cannot be a list"), ("lora_r:", "'lora_r' cannot be nothing"),
        ("eval_fraction: 1", "'eval_fraction' cannot be '1'"), ("lora_dropout: 1.0", "'lora_dropout' cannot be '1.0'"),
        ("memory_limit: lots", "'memory_limit' cannot be 'lots'"),
        ("export: [fused, gguf]", "'export' cannot be a list"),
        ("max_length: 99999999999999999999", "'max_length' cannot be '99999999999999999999'"),
    ]) func wrongValue(_ line: String, _ problem: String) throws {
        let error = try #require(failure(minimal + line + "\n"))
        #expect(error.problem == problem)
        #expect(error.location == "recipe.yaml, line 3")
    }

    @Test func choiceSuggestsNeighbour() {
        #expect(failure(minimal + "lr_scheduler_type: cosin\n")?.remedy == "did you mean 'cosine'?")
    }

    @Test(arguments: [
        ("method: full\nlora_r: 16", "'lora_r' has no effect", 4),
        ("method: full\ntarget_modules: all-linear", "'target_modules' has no effect", 4),
        ("method: full\nexport: fused", "'fused' cannot be written", 4),
        ("train_router: true\nexport: fused", "'fused' would lose the trained routers", 4),
        ("router_aux_loss_coef: 0.01", "'router_aux_loss_coef' has no effect", 3),
        ("router_z_loss_coef: 0.01", "'router_z_loss_coef' has no effect", 3),
        ("num_train_epochs: 1\nmax_steps: 5", "'num_train_epochs' has no effect", 3),
        ("warmup_steps: 5\nwarmup_ratio: 0.1", "'warmup_ratio' has no effect", 4),
        ("lr_scheduler_type: constant\nwarmup_steps: 5", "'warmup_steps' has no effect", 4),
        ("lr_scheduler_type: constant_with_warmup", "'lr_scheduler_type' has no effect", 3),
        ("eval_steps: 5", "'eval_steps' has no effect", 3),
        ("early_stopping_patience: 2", "'early_stopping_patience' has no effect", 3),
        ("load_best_model_at_end: true", "'load_best_model_at_end' has no effect", 3),
        ("eval_dataset: e.jsonl\neval_fraction: 0.1", "'eval_fraction' has no effect", 4),
        ("target_modules: [all-linear, q_proj]", "'q_proj' has no effect", 3),
        ("target_modules: [q_proj, q_proj]", "'q_proj' stands twice in 'target_modules'", 3),
    ]) func withoutEffect(_ lines: String, _ problem: String, _ line: Int) throws {
        let error = try #require(failure(minimal + lines + "\n"))
        #expect(error.problem == problem)
        #expect(error.location == "recipe.yaml, line \(line)")
    }

    @Test func notYAML() {
        #expect(failure("model: [a\n")?.problem == "not valid YAML")
        #expect(failure("model: a\nmodel: b\n")?.problem == "the recipe gives 'model' twice")
        #expect(failure("- a\n- b\n")?.problem == "a recipe is a list of 'key: value' lines")
        #expect(failure("")?.problem == "the recipe names no model")
        #expect(failure("model: a\n")?.problem == "the recipe names no dataset")
        #expect(errorOf { _ = try Recipe(contentsOf: "/nowhere/recipe.yaml") }?.location == "/nowhere/recipe.yaml")
        #expect(failure(minimal, overrides: ["lora_r"])?.location == "--set")
    }

    @Test(arguments: [
        ("method: lora\n  lora_r: 3", 4, "mapping values are not allowed in this context"),
        ("method: 'lora", 4, "found unexpected end of stream"),
        ("method: *none", 3, "found undefined alias 'none'"), ("[a]: b", 3, "a key is not a text"),
        ("---\nmethod: lora", 3, "it holds more than one document"),
        ("columns: \(String(repeating: "[", count: 40))", 3, "lists and mappings are nested deeper than 32"),
        ("method: \u{1}", nil, "control characters are not allowed"),
    ]) func whatIsNotYAML(_ lines: String, _ line: Int?, _ reason: String) throws {
        let error = try #require(failure(minimal + lines + "\n"))
        #expect(error.problem == "not valid YAML" && error.reason == reason)
        #expect(error.location == "recipe.yaml" + (line.map { ", line \($0)" } ?? ""))
    }

    @Test func readsWhatYAMLCanWrite() throws {
        let recipe = try Recipe(
            yaml: """
                # a comment
                "model": |-
                  /models/my: model
                dataset: # two files
                  - &first 'a ''quoted'' name.jsonl'
                  - "b\\u00e9.jsonl"
                columns: {prompt: &column "null", completion: *column}
                eval_steps: ~
                output_dir: >-
                  one
                  line
                """)
        #expect(recipe.model == "/models/my: model")
        #expect(recipe.dataset == ["a 'quoted' name.jsonl", "b\u{e9}.jsonl"])
        #expect(recipe.columns == ["prompt": "null", "completion": "null"])
        #expect(recipe.evalSteps == nil && recipe.outputDir == "one line")
        let twice = failure(minimal + "columns:\n  prompt: a\n  prompt: b\n")
        #expect(twice?.problem == "the recipe gives 'prompt' twice" && twice?.location == "recipe.yaml, line 5")
    }

    @Test func targetsMustExist() throws {
        var recipe = try Recipe(yaml: minimal + "target_modules: [q_projj]\n", name: "recipe.yaml")
        let error = try #require(errorOf { try recipe.checkTargets(["q_proj", "v_proj"]) })
        #expect(error.problem == "adapter target 'q_projj' matches no layer")
        #expect(error.location == "recipe.yaml, line 3")
        #expect(error.remedy == "did you mean 'q_proj'?")
        recipe.targetModules = ["v_proj"]
        try recipe.checkTargets(["q_proj", "v_proj"])
    }

    @Test func dumpRunsAgain() throws {
        for lines in [
            "", "max_steps: 5\n", "method: full\n", "eval_fraction: 0.1\nload_best_model_at_end: true\n",
            "warmup_ratio: 0.1\nseed: 3\n", "train_router: true\nrouter_aux_loss_coef: 0.5\n",
        ] {
            let recipe = try Recipe(yaml: minimal + lines)
            let again = try Recipe(yaml: recipe.yaml)
            #expect(again.json == recipe.json)
            #expect(recipe.yaml.contains("seed: ") && recipe.yaml.contains("# default"))
        }
    }

    @Test func theTableIsWhole() {
        // Every stored setting of Recipe has a row: the mirror counts the properties (`places` is not a setting).
        #expect(RecipeKey.all.count == Mirror(reflecting: Recipe(model: "", dataset: [])).children.count - 1)
        #expect(Set(RecipeKey.all.map(\.name)).count == RecipeKey.all.count)
        for key in RecipeKey.all {
            #expect(Recipe.help.contains("  \(key.name): "))
            #expect(!key.meaning.isEmpty && !key.section.isEmpty)
        }
    }

    @Test func differencesOnResume() throws {
        let before = try Recipe(yaml: minimal + "lora_r: 8\n")
        let saved = try JSON(parsing: before.json.text())
        #expect(before.differencesOnResume(from: saved).isEmpty)
        var now = before
        now.loraR = 4
        now.saveSteps = 7
        now.threads = 3
        now.learningRate = 2e-4
        #expect(now.differencesOnResume(from: saved).map(\.key) == ["lora_r"])
    }
}
