import ArgumentParser
import Martlet

struct MergeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "merge", abstract: "Put an adapter into its base model's weights.",
        discussion: """
            Writes a whole model in the hub's layout, for tools that know no adapters, then reads it again and compares \
            its logits with those of base model and adapter. What does not pass is deleted.

              martlet merge /models/Qwen3-0.6B runs/first/adapter merged --dtype bf16
            """)

    @Argument(help: "Folder of the base model.") var model: String
    @Argument(help: "Folder of the adapter.") var adapter: String
    @Argument(help: "Folder to write.") var out: String
    @Option(help: "bf16, f16 or f32 (default: the base model's).") var dtype: DTypeName?
    @OptionGroup var compute: ComputeOptions
    @Flag(help: "Print one JSON object.") var json = false

    func run() throws {
        let merge = try Merge.run(
            model: model, adapter: adapter, into: out, dtype: dtype?.dtype, compute: compute.value)
        Terminal.say(json ? merge.json : merge.description)
    }
}

struct ExportAdapterCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "export-adapter", abstract: "Write an adapter again in another layout.",
        discussion: """
            'fused' is PEFT's layout, one pair of matrices for all experts of a layer; 'per_expert' has a pair for each \
            expert, which vLLM reads for Qwen3-MoE. What was written is read again and compared.

              martlet export-adapter runs/first/adapter out --model /models/Qwen3-30B-A3B --layout per_expert
            """)

    @Argument(help: "Folder of the adapter.") var adapter: String
    @Argument(help: "Folder to write.") var out: String
    @Option(help: "Folder of the base model (only its config.json is read).") var model: String
    @Option(help: "fused or per_expert.") var layout: AdapterLayout

    func run() throws {
        Terminal.say(try AdapterExport.run(adapter: adapter, model: model, into: out, layout: layout.exportLayout))
    }
}

enum AdapterLayout: String, ExpressibleByArgument, CaseIterable {
    case fused, perExpert = "per_expert"
    var exportLayout: Recipe.ExportLayout { self == .fused ? .fused : .perExpert }
}

enum DTypeName: String, ExpressibleByArgument, CaseIterable {
    case bf16, f16, f32
    var dtype: DType {
        switch self {
        case .bf16: .bfloat16
        case .f16: .float16
        case .f32: .float32
        }
    }
}
