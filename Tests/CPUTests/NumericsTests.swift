import MartletCore
import MartletTestSupport
import Testing

@Suite struct NumericsTests {
    let reference: [Double] = {
        var stream = RandomStream(seed: 5)
        return (0..<12).map { _ in Double(stream.normal()) * 1e-6 }
    }()

    private func problem(_ actual: [Double]) -> String? {
        mismatch(actual.map(Float.init), reference, tolerance: 1e-4, shape: [4, 3])
    }

    @Test func acceptsTheReferenceRounded() { #expect(problem(reference) == nil) }

    @Test func rejectsZeros() { #expect(problem(reference.map { _ in 0 }) != nil) }

    @Test func rejectsASignFlip() { #expect(problem(reference.map { -$0 }) != nil) }

    @Test func rejectsAShiftByOneRow() { #expect(problem(Array(reference[3...] + reference[..<3])) != nil) }

    @Test func rejectsNaNAndMissingValues() {
        #expect(problem(reference.map { _ in .nan }) != nil)
        #expect(problem(Array(reference.dropLast())) != nil)
    }

    @Test func namesTheFirstBadCoordinateAndBothValues() throws {
        var actual = reference
        actual[7] = 1
        let text = try #require(problem(actual))
        #expect(text.contains("[2, 1]: 1.0 for \(reference[7])"))
    }

    @Test func wantsInfinityWhereTheReferenceHasIt() {
        #expect(mismatch([1, -.infinity], [1, -.infinity], tolerance: 1e-6) == nil)
        #expect(mismatch([1, -9], [1, -.infinity], tolerance: 1e-6) != nil)
    }
}
