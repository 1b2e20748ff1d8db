import MartletCore
import MartletTestSupport
import Testing

@testable import MartletCUDA

/// What the driver refuses to launch.
@Suite struct LaunchTests {
    /// Kernels whose blocks wait for each other would hang a run without a word.
    @Test func blocksThatCannotRunAtOnceAreRefused() throws {
        let home = try TemporaryFolder(), device = try Device.pretended(home)
        func launch(_ blocks: Int, together: Bool) -> MartletError? {
            device.launch(
                device.kernel("copy.cu", "zero_bytes"), Grid(blocks), block: 32, together: together, [])
            return device.takeFailure()
        }
        #expect(launch(133, together: false) == nil && launch(132, together: true) == nil)
        let error = try #require(launch(133, together: true))
        #expect(error.problem == "the GPU reports an error" && error.remedy?.contains("MPS") == true)
    }
}
