import MartletCore
import MartletTestSupport

@testable import MartletCUDA

// A GPU that is not there: kernels do nothing, and between any two events lies half a millisecond. It has 132 multiprocessors with
// room for one block each.

extension Device {
    /// A Hopper; kernels are kept in `home`.
    static func pretended(_ home: TemporaryFolder) throws(MartletError) -> Device {
        try Device(.pretended, .pretended, index: 0, cache: KernelCache(folder: home.file("kernels")))
    }
}

extension Driver {
    static let pretended = Driver(
        initialize: { _ in 0 },
        driverGetVersion: { version in
            version.pointee = 13000
            return 0
        },
        deviceGetCount: { count in
            count.pointee = 1
            return 0
        },
        deviceGet: { _, _ in 0 }, deviceGetName: { _, _, _ in 0 },
        deviceGetAttribute: { value, attribute, _ in
            let major: Int32 = 75, minor: Int32 = 76
            value.pointee = attribute == major ? 9 : attribute == minor ? 0 : 132
            return 0
        },
        deviceTotalMem: { _, _ in 0 }, deviceGetPCIBusId: nil, primaryContextRetain: { _, _ in 0 },
        contextSetCurrent: { _ in 0 }, contextSetLimit: { _, _ in 0 }, memoryInfo: { _, _ in 0 },
        memoryAllocate: { _, _ in 2 }, memoryFree: { _ in 0 }, hostAllocate: { _, _, _ in 2 }, hostFree: { _ in 0 },
        hostRegister: nil, hostUnregister: nil, copy: { _, _, _, _ in 0 }, streamCreate: { _, _ in 0 },
        streamSynchronize: { _ in 0 }, streamWaitEvent: { _, _, _ in 0 }, eventCreate: { _, _ in 0 },
        eventRecord: { _, _ in 0 }, eventSynchronize: { _ in 0 },
        eventElapsedTime: { milliseconds, _, _ in
            milliseconds.pointee = 0.5
            return 0
        },
        eventDestroy: { _ in 0 }, moduleLoadData: { _, _ in 0 }, moduleGetFunction: { _, _, _ in 0 },
        functionSetAttribute: { _, _, _ in 0 },
        launchKernel: { configuration, _, _, _ in
            // The second attribute asks for all blocks at once.
            let asked = configuration.load(as: LaunchConfiguration.self)
            return asked.attributeCount == 2 && asked.grid.x > 132 ? 720 : 0
        },
        tensorMapEncodeTiled: nil,
        getErrorName: { _, _ in 0 }, getErrorString: { _, _ in 0 })
}

extension Compiler {
    /// Makes an image of one zero of anything.
    static let pretended = Compiler(
        create: { _, _, _, _, _, _ in 0 }, compileProgram: { _, _, _ in 0 }, destroy: { _ in 0 },
        getLogSize: emptyText, getImageSize: emptyText, getTextSize: emptyText, getLog: zero, getImage: zero,
        getText: zero, version: "none")

    private static let emptyText: @convention(c) (Program, UnsafeMutablePointer<Int>) -> Int32 = { _, size in
        size.pointee = 1
        return 0
    }
    private static let zero: @convention(c) (Program, UnsafeMutablePointer<CChar>) -> Int32 = { _, text in
        text.pointee = 0
        return 0
    }
}
