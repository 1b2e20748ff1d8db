internal import MartletCore

/// cuDNN, through its C backend API: descriptors are made, given attributes, and finalized.
final class CuDNN {
    typealias Pointer = OpaquePointer?

    struct Functions {
        let create: @convention(c) (UnsafeMutablePointer<Pointer>) -> Int32
        let destroy: @convention(c) (Pointer) -> Int32
        let setStream: @convention(c) (Pointer, Driver.Pointer) -> Int32
        let getVersion: @convention(c) () -> Int
        let getErrorString: @convention(c) (Int32) -> UnsafePointer<CChar>?
        let getLastErrorString: @convention(c) (UnsafeMutablePointer<CChar>, Int) -> Void
        let createDescriptor: @convention(c) (Int32, UnsafeMutablePointer<Pointer>) -> Int32
        let destroyDescriptor: @convention(c) (Pointer) -> Int32
        let setAttribute: @convention(c) (Pointer, Int32, Int32, Int64, UnsafeRawPointer?) -> Int32
        let getAttribute:
            @convention(c) (
                Pointer, Int32, Int32, Int64, UnsafeMutablePointer<Int64>?, UnsafeMutableRawPointer?
            ) -> Int32
        let finalize: @convention(c) (Pointer) -> Int32
        let execute: @convention(c) (Pointer, Pointer, Pointer) -> Int32
    }

    let functions: Functions
    /// "cuDNN 9.19.0"
    let version: String
    private(set) var handle: Pointer = nil

    /// Attention over packed rows needs 9.12: from there on the softmax statistics may lie as [T, Q].
    private static let oldest = 91200

    init(_ device: Device) throws(MartletError) {
        let library = try DynamicLibrary("cuDNN", ["libcudnn.so.9"])
        functions = Functions(
            create: try library.symbol("cudnnCreate"), destroy: try library.symbol("cudnnDestroy"),
            setStream: try library.symbol("cudnnSetStream"), getVersion: try library.symbol("cudnnGetVersion"),
            getErrorString: try library.symbol("cudnnGetErrorString"),
            getLastErrorString: try library.symbol("cudnnGetLastErrorString"),
            createDescriptor: try library.symbol("cudnnBackendCreateDescriptor"),
            destroyDescriptor: try library.symbol("cudnnBackendDestroyDescriptor"),
            setAttribute: try library.symbol("cudnnBackendSetAttribute"),
            getAttribute: try library.symbol("cudnnBackendGetAttribute"),
            finalize: try library.symbol("cudnnBackendFinalize"), execute: try library.symbol("cudnnBackendExecute"))
        let number = functions.getVersion()
        version = "cuDNN \(number / 10000).\(number / 100 % 100).\(number % 100)"
        guard number >= CuDNN.oldest else {
            throw MartletError(
                "\(version) is too old", in: library.description, because: "its packed attention is incomplete",
                fix: "install 9.12 or newer (`pip install nvidia-cudnn-cu13`)")
        }
        try check(functions.create(&handle), "cudnnCreate")
        try check(functions.setStream(handle, device.stream), "cudnnSetStream")
    }

    deinit { if handle != nil { _ = functions.destroy(handle) } }

    func check(_ status: Int32, _ what: @autoclosure () -> String) throws(MartletError) {
        guard status != 0 else { return }
        var detail = [CChar](repeating: 0, count: 2048)
        functions.getLastErrorString(&detail, detail.count)
        let name = functions.getErrorString(status).map { String(cString: $0) } ?? "status \(status)"
        let text = String(decoding: detail.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
        throw MartletError(
            "\(version) refuses", in: what(), because: text.isEmpty ? name : "\(name): \(text)",
            fix: "run `martlet doctor`, and report this with its output")
    }
}
