import MartletCore
import MartletTestSupport
import Testing

@testable import MartletCUDA

/// What the driver hears of a launch, and what it refuses.
@Suite struct LaunchTests {
    private let home: TemporaryFolder, device: Device

    init() throws {
        home = try TemporaryFolder()
        device = try .pretended(home)
    }

    private func launch(_ blocks: Int, together: Bool) -> MartletError? {
        let kernel = device.kernel("copy.cu", "zero_bytes")
        device.launch(kernel, Grid(blocks), block: 32, together: together, [])
        return device.takeFailure()
    }

    /// Kernels whose blocks wait for each other would hang a run without a word.
    @Test func blocksThatCannotRunAtOnceAreRefused() throws {
        #expect(launch(133, together: false) == nil && launch(132, together: true) == nil)
        let error = try #require(launch(133, together: true))
        #expect(error.problem == "the GPU reports an error" && error.remedy?.contains("MPS") == true)
    }
}
