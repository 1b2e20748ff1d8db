// The table of settings, in the order in which they are printed.

extension RecipeKey {
    package static let all: [RecipeKey] = sections.flatMap { section, isFixed, keys in
        keys.map { key in
            var key = key
            key.section = section
            key.isFixedForResume = isFixed && !toldByFingerprint.contains(key.name)
            return key
        }
    }

    /// These may move or be renamed: the fingerprint of the data tells whether they came to something else.
    private static let toldByFingerprint: Set<String> = [
        "dataset", "dataset_format", "columns", "eval_dataset", "skip_bad_rows",
    ]

    /// Title, whether a run may not be resumed with other values, and the keys.
    private static let sections: [(String, Bool, [RecipeKey])] = [
        ("Model and method", true, modelKeys), ("Data", true, dataKeys), ("Steps", true, stepKeys),
        ("Optimizer", true, optimizerKeys), ("Adapter", true, adapterKeys), ("Router", true, routerKeys),
        ("Validation, saving, logging", false, savingKeys), ("Machine", false, machineKeys),
    ]

    private static let modelKeys: [RecipeKey] = [
        .text("model", \.model, "folder of the model: config.json, tokenizer.json, *.safetensors"),
        .choice("method", \.method, "train a low-rank adapter, or every weight"),
    ]

    private static let dataKeys: [RecipeKey] = [
        .texts("dataset", \.dataset, "dataset files"),
        .choice("dataset_format", \.datasetFormat, "shape of a row; auto looks at the first rows"),
        .map("columns", \.columns, "dataset column for each role, where the names differ from the format's own"),
        .texts("eval_dataset", \.evalDataset, "dataset files to validate on"),
        .number("eval_fraction", \.evalFraction, .belowOne, "share of dataset held out for validation"),
        .flag("skip_bad_rows", \.skipBadRows, "count and skip unusable rows instead of stopping"),
        .integer("max_length", \.maxLength, 2...1 << 24, "longest sequence in tokens, and the length of a packed row"),
        .flag("packing", \.packing, "let several examples share a row; they do not see each other"),
        .choice("loss_on", \.lossOn, "tokens that count: the assistant's, all, or the last assistant turn's"),
    ]

    private static let stepKeys: [RecipeKey] = [
        .integer("per_device_train_batch_size", \.perDeviceTrainBatchSize, 1...1 << 20, "rows in a batch"),
        .integer(
            "gradient_accumulation_steps", \.gradientAccumulationSteps, 1...1 << 20, "batches in an optimizer step"),
        .number("num_train_epochs", \.numTrainEpochs, .positive, "passes over the dataset"),
        .integer(
            "max_steps", \.maxSteps, default: "from num_train_epochs", "optimizer steps, instead of num_train_epochs"),
        .integer("seed", \.seed, 0...Int.max, "seed of adapter initialisation, shuffling and dropout"),
    ]

    private static let optimizerKeys: [RecipeKey] = [
        .choice("optim", \.optim, "AdamW; adamw_8bit keeps its two moments in a quarter of the memory"),
        .number(
            "learning_rate", \.learningRate, .positive, default: "2e-4 for lora, 1e-5 for full", "peak learning rate"),
        .choice("lr_scheduler_type", \.lrSchedulerType, "how the learning rate moves after the warmup"),
        .integer("warmup_steps", \.warmupSteps, 0...Int.max, "steps over which the learning rate rises from 0"),
        .number("warmup_ratio", \.warmupRatio, .upToOne, "the same as a share of all steps"),
        .number(
            "weight_decay", \.weightDecay, .atLeastZero, "decoupled weight decay; norms and biases are not decayed"),
        .number("adam_beta1", \.adamBeta1, .belowOne, "decay of the first moment"),
        .number("adam_beta2", \.adamBeta2, .belowOne, "decay of the second moment"),
        .number("adam_epsilon", \.adamEpsilon, .positive, "added to the denominator of the update"),
        .number("max_grad_norm", \.maxGradNorm, .atLeastZero, "scale gradients down to this global norm; 0: never"),
    ]

    private static let adapterKeys: [RecipeKey] = [
        .integer("lora_r", \.loraR, 1...1 << 14, "rank of the adapter"),
        .number("lora_alpha", \.loraAlpha, .positive, "the delta is scaled by lora_alpha / lora_r"),
        .number("lora_dropout", \.loraDropout, .belowOne, "probability of dropping an input of the adapter"),
        .flag("use_rslora", \.useRslora, "scale by lora_alpha / sqrt(lora_r) instead"),
        .texts(
            "target_modules", \.targetModules,
            "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or the groups attention, experts, all-linear; "
                + "in a mixture-of-experts layer gate_proj, up_proj and down_proj are the experts' tensors"),
    ]

    private static let routerKeys: [RecipeKey] = [
        .flag("train_router", \.trainRouter, "train the routers too"),
        .number(
            "router_aux_loss_coef", \.routerAuxLossCoef, .atLeastZero, default: "the model's own",
            "weight of the load-balancing loss"),
        .number("router_z_loss_coef", \.routerZLossCoef, .atLeastZero, "weight of the router z loss"),
    ]

    private static let savingKeys: [RecipeKey] = [
        .integer("eval_steps", \.evalSteps, default: "the end of each epoch", "steps between validations"),
        .integer("save_steps", \.saveSteps, 1...Int.max, "steps between checkpoints; the last step is always saved"),
        .integer(
            "save_total_limit", \.saveTotalLimit, default: "keep all",
            "checkpoints to keep; the newest and the best are never deleted"),
        .integer(
            "early_stopping_patience", \.earlyStoppingPatience, default: "never stop early",
            "validations without a better loss before stopping"),
        .flag("load_best_model_at_end", \.loadBestModelAtEnd, "end with the weights of the best validation"),
        .integer("logging_steps", \.loggingSteps, 1...Int.max, "write every n-th step to metrics.jsonl"),
        .integer(
            "sample_prompts", \.samplePrompts, 0...64,
            default: "\(Samples.defaultCount), or 0 where decoding the weights again for each token would take long",
            "prompts of the data that the report shows, continued before the training and after it"),
        .text("output_dir", \.outputDir, "folder for everything the run writes"),
        .text(
            "resume", \.resume, "auto: from the newest checkpoint in output_dir; never; or the folder of a checkpoint"),
        .choices(
            "export", \.export, default: "fused for an adapter, merged where whole weights are trained",
            "forms in which the result is written"),
    ]

    private static let machineKeys: [RecipeKey] = [
        .bytes(
            "memory_limit", \.memoryLimit, default: "what the machine has", "most memory to plan for, such as 12GiB"),
        .integer("tile_tokens", \.tileTokens, default: "planned", "tokens that go through a layer at a time"),
        .choice("device", \.device, "where to compute; auto: the GPU if there is one"),
        .integer("threads", \.threads, default: "all cores", "CPU threads"),
        .flag(
            "deterministic", \.deterministic,
            "the same seed gives the same bytes; false: not so on a GPU where cuDNN computes attention (heads other than 128 wide), which is then faster on long sequences and needs less memory"
        ),
    ]
}
