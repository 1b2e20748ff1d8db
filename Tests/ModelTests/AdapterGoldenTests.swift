import Foundation
import MartletCPU
import MartletCore
import MartletModel
import Testing

/// LoRA against PEFT: logits, gradients, five steps, and the files in both directions.
@Suite struct AdapterGoldenTests {
    @Test(arguments: Golden.names) func logitsAndGradients(_ name: String) throws {
        let golden = try Golden(name)
        let adapter = try Adapter(folder: golden.folder + "/adapter", for: golden.checkpoint.configuration)
        for (tile, kept) in [(2048, 1), (5, 0)] {
            let model = try golden.model(ModelSettings(.lora, adapter: LoRASettings(adapter)), tile: tile, kept: kept)
            try model.load(adapter)
            expectClose(try model.logits(golden.step()), try golden.floats("lora.logits"), absolute: 1e-4, "logits")
            let outcome = try model.trainStep(golden.step(), index: 0)
            #expect(abs(outcome.loss - Double(try golden.floats("lora.loss")[0])) < 1e-5)
            try expectFactors(model, golden, prefix: "lora.grad.", relative: 1e-4) { $0.gradient }
        }
    }

    @Test(arguments: Golden.names) func fiveSteps(_ name: String) throws {
        let golden = try Golden(name)
        let adapter = try Adapter(folder: golden.folder + "/adapter", for: golden.checkpoint.configuration)
        let model = try golden.model(ModelSettings(.lora, adapter: LoRASettings(adapter)), tile: 7, kept: 1)
        try model.load(adapter)
        let losses = try GoldenTests().train(model, golden)
        expectClose(losses, try golden.floats("lora.losses"), relative: 1e-3, "losses")
        try expectFactors(model, golden, prefix: "lora.after.", relative: 1e-3) { $0.value }
    }

    @Test(arguments: Golden.names, [Adapter.Layout.fused, .perExpert])
    func writtenAdapterGivesTheSameLogits(_ name: String, _ layout: Adapter.Layout) throws {
        let golden = try Golden(name), configuration = golden.checkpoint.configuration
        let adapter = try Adapter(folder: golden.folder + "/adapter", for: configuration)
        let folder = NSTemporaryDirectory() + "martlet-adapter-\(name)-\(layout)-\(getpid())"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try adapter.write(to: folder, for: configuration, layout: layout)
        let reread = try Adapter(folder: folder, for: configuration)
        let model = try golden.model(ModelSettings(.inference, adapter: LoRASettings(reread)))
        try model.load(reread)
        expectClose(try model.logits(golden.step()), try golden.floats("lora.logits"), absolute: 1e-4, "logits")
    }

    /// Gradients or values under PEFT's names: what our layout holds, written as PEFT would write it.
    private func expectFactors(
        _ model: Model, _ golden: Golden, prefix: String, relative: Float, _ tensor: (Parameter) -> Tensor
    ) throws {
        var adapter = try #require(model.adapter(baseModel: ""))
        for (a, b) in zip(model.parameters.filter { $0.role == .a }, model.parameters.filter { $0.role == .b }) {
            adapter.matrices[a.weight]?.a = model.floats(tensor(a))
            adapter.matrices[b.weight]?.b = model.floats(tensor(b))
        }
        let folder = NSTemporaryDirectory() + "martlet-factors-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try adapter.write(to: folder, for: golden.checkpoint.configuration)
        let file = try SafeTensorsFile(folder + "/adapter_model.safetensors")
        let expected = golden.reference.tensors.filter { $0.name.hasPrefix(prefix) }
        #expect(expected.count == file.tensors.count)
        for tensor in expected {
            let key = String(tensor.name.dropFirst(prefix.count))
            let found = try #require(file[key], "no \(key) in what was written")
            expectClose(try found.floats(), try tensor.floats(), relative: relative, prefix + key)
        }
    }
}
