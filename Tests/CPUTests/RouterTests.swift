import MartletCPU
import MartletCore
import Testing

@Suite struct RouterTests {
    private func route(_ logits: [Float], experts: Int, k: Int) throws -> [String: [Float]] {
        var c = OpCase.route(seed: 1, t: logits.count / experts, e: experts, k: k, normalizes: true)
        c.inputs["logits"] = logits
        return try c.run(on: CPUBackend(threads: 2)).results
    }

    @Test func tiesGoToTheLowestIndex() throws {
        let results = try route([0, 2, 1, 2, 1, 5, 5, 5, 5, 5], experts: 5, k: 3)
        #expect(results["expert"] == [1, 3, 2, 0, 1, 2])
        // Flat indices by expert: expert 0 has 3; expert 1 has 0 and 4; expert 2 has 2 and 5; expert 3 has 1.
        #expect(results["order"] == [3, 0, 4, 2, 5, 1])
        #expect(results["offset"] == [0, 1, 3, 5, 6, 6])
    }

    @Test func notANumberKeepsExpertsValidAndShowsInTheWeights() throws {
        let results = try route([0, .nan, 1, 2, 1, 2, 3, 0], experts: 4, k: 2)
        let experts = results["expert"] ?? []
        #expect(experts.count == 4 && experts.allSatisfy { $0 >= 0 && $0 < 4 })
        #expect(experts[0] != experts[1])
        #expect(results["weight"]?.prefix(2).allSatisfy(\.isNaN) == true)
        #expect(Array(experts[2...]) == [2, 1])
        #expect(results["order"]?.sorted() == [0, 1, 2, 3])
    }

    @Test func hugeLogitsStayFinite() throws {
        let results = try route([3e38, -3e38, 0, -.infinity], experts: 4, k: 2)
        #expect(results["probability"] == [1, 0, 0, 0])
        #expect(results["weight"] == [1, 0])
        #expect(results["expert"] == [0, 1])
    }
}
