import Foundation
import MartletCPU
import MartletCore
import MartletTestSupport
import Testing

@testable import Martlet

/// What `doctor --goldens` lets pass in 16 bits, tried on the CPU backend's float32 numbers.
@Suite struct GoldenBoundsTests {
    private let home: TemporaryFolder

    /// A copy of a golden.
    init() throws {
        home = try TemporaryFolder()
        let tests = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        let golden = tests.appending(path: "ModelTests/ModelGoldens/moe_rslora").path
        try FileManager.default.copyItem(atPath: golden, toPath: home.file("golden"))
    }

    private func unsound(_ dtype: DType) throws -> [String] {
        try Golden(folder: home.file("golden"), on: CPUBackend(threads: 1), judgedAs: dtype).distances()
            .filter { !$0.isSound }.map(\.name)
    }

    /// Changes a file of the golden in place; `change` gets its bytes, and where each of its tensors stands.
    private func change(_ file: String, by change: (inout [UInt8], [String: Place]) throws -> Void) throws {
        let url = URL(filePath: home.file("golden/\(file)"))
        var bytes = [UInt8](try Data(contentsOf: url))
        let start = 8 + bytes.prefix(8).enumerated().reduce(0) { $0 + Int($1.element) << (8 * $1.offset) }
        let header = try JSONSerialization.jsonObject(with: Data(bytes[8..<start])) as? [String: Any] ?? [:]
        var places: [String: Place] = [:]
        for (name, entry) in header {
            guard let entry = entry as? [String: Any], let place = entry["data_offsets"] as? [Int] else { continue }
            let width = entry["dtype"] as? String == "BF16" ? 2 : 4
            places[name] = Place(bytes: start + place[0]..<start + place[1], width: width)
        }
        try change(&bytes, places)
        try Data(bytes).write(to: url)
    }

    private struct Place {
        var bytes: Range<Int>
        /// Bytes of an entry.
        var width: Int
        /// Where the upper halves of its entries begin: that of a float32 is a bfloat16.
        var halves: StrideTo<Int> { stride(from: bytes.lowerBound + width - 2, to: bytes.upperBound, by: width) }
    }

    private func scale(_ at: Int, of bytes: inout [UInt8], by factor: Float) {
        let value = factor * half(at, of: bytes)
        (bytes[at], bytes[at + 1]) = (UInt8(value.bfloat16Bits & 255), UInt8(value.bfloat16Bits >> 8))
    }

    private func half(_ at: Int, of bytes: [UInt8]) -> Float {
        Float(bfloat16Bits: UInt16(bytes[at]) | UInt16(bytes[at + 1]) << 8)
    }

    /// Multiplies every tensor of a safetensors file whose name has `part` in it.
    private func scale(_ part: String, of file: String, by factor: Float) throws {
        try change(file) { bytes, places in
            let found = places.filter { $0.key.contains(part) }
            #expect(!found.isEmpty, "\(file) has no tensor like \(part)")
            for place in found.values {
                for at in place.halves { scale(at, of: &bytes, by: factor) }
            }
        }
    }

    @Test func aBoundIsItsTypes() {
        func bound(_ dtype: DType) -> Double {
            GoldenBounds(dtype: dtype).distance("logits", 0, half: 0.02, whole: 1e-4).bound
        }
        #expect(bound(.bfloat16) == 0.02 && bound(.float16) == 0.005 && bound(.float32) == 1e-4)
    }

    @Test func theRightNumbersPass() throws {
        #expect(try unsound(.bfloat16).isEmpty)
        #expect(try unsound(.float16).isEmpty)
    }

    @Test func anAdapterOfZerosIsFoundOut() throws {
        try scale("lora_B", of: "adapter/adapter_model.safetensors", by: 0)
        let found = try unsound(.bfloat16)
        #expect(found.contains("adapted logits") && found.contains("adapter's gradients"), "\(found)")
        #expect(!found.contains("logits"), "\(found)")
    }

    /// The largest gradient of the embedding, 13 % too large: its norm hardly notices.
    @Test func oneWrongEntryIsFoundOut() throws {
        try change("reference.safetensors") { bytes, places in
            let halves = try #require(places["grad.model.embed_tokens.weight"]).halves
            let largest = try #require(halves.max { half($0, of: bytes).magnitude < half($1, of: bytes).magnitude })
            scale(largest, of: &bytes, by: 1.13)
        }
        #expect(try unsound(.bfloat16) == ["all gradients"])
    }

    @Test(arguments: [
        "layers.0.self_attn.v_proj", "layers.1.mlp.experts.2.up_proj", "layers.1.mlp.gate.weight", "q_norm",
    ])
    func aPerturbedWeightIsFoundOut(_ name: String) throws {
        try scale(name, of: "model.safetensors", by: 1.5)
        let found = try unsound(.bfloat16)
        #expect(found.contains("all gradients"), "\(found)")
    }
}
