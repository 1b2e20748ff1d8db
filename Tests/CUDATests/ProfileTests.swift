import MartletCore
import MartletTestSupport
import Testing

@testable import MartletCUDA

/// What a profile tells apart, and under which names.
@Suite struct ProfileTests {
    private let home: TemporaryFolder, device: Device

    init() throws {
        home = try TemporaryFolder()
        device = try .pretended(home)
    }

    private func launch(_ file: String, _ entry: String, _ defines: [KernelDefine] = []) {
        device.launch(device.kernel(file, entry, defines), 1, block: 32, [])
    }

    /// An op of three launches, one of them inside an op of its own; and one launch outside of any.
    private func work() {
        device.timed("experts") {
            for _ in 0..<2 {
                launch("combine.cu", "combine", [KernelDefine("HIDDEN", 2048), KernelDefine("TOP_K", 8)])
            }
            device.timed("convert") { launch("elementwise.cu", "to_half", [KernelDefine("HALF", 0)]) }
            launch("combine.cu", "combine", [KernelDefine("HIDDEN", 2048), KernelDefine("TOP_K", 4)])
        }
        launch("copy.cu", "zero_bytes")
    }

    private func profile(by detail: ProfileDetail) throws -> [String: [Double]] {
        device.profile = Profile(detail: detail)
        work()
        let entries = device.endProfile()
        if let failure = device.takeFailure() { throw failure }
        return entries.mapValues { [Double($0.count), $0.milliseconds] }
    }

    @Test func kernelsByOpEntryAndConstants() throws {
        let expected = [
            "experts: combine HIDDEN=2048 TOP_K=8": [2, 1], "experts: combine HIDDEN=2048 TOP_K=4": [1, 0.5],
            "convert: to_half HALF=0": [1, 0.5], "zero_bytes": [1, 0.5],
        ]
        #expect(try profile(by: .kernels) == expected)
    }

    /// An op's time holds that of the ops in it; launches outside of ops are not told.
    @Test func opsAsAWhole() throws {
        #expect(try profile(by: .ops) == ["experts": [1, 0.5], "convert": [1, 0.5]])
    }

    @Test func withoutAProfileNothingIsKept() throws {
        work()
        #expect(device.launchCount == 5 && device.endProfile().isEmpty && device.takeFailure() == nil)
        _ = try profile(by: .kernels)
        work()
        #expect(device.endProfile().isEmpty && device.launchCount == 15)
    }
}
