internal import CMartletKernels
internal import MartletCore

/// NVRTC: compiles the embedded sources for one architecture. Needs no GPU and no CUDA headers.
struct Compiler: Sendable {
    typealias Program = OpaquePointer?
    typealias Strings = UnsafeMutablePointer<UnsafePointer<CChar>?>

    let create:
        @convention(c) (
            UnsafeMutablePointer<Program>, UnsafePointer<CChar>, UnsafePointer<CChar>, Int32, Strings, Strings
        ) -> Int32
    let compileProgram: @convention(c) (Program, Int32, Strings) -> Int32
    let destroy: @convention(c) (UnsafeMutablePointer<Program>) -> Int32
    let getLogSize, getImageSize, getTextSize: @convention(c) (Program, UnsafeMutablePointer<Int>) -> Int32
    let getLog, getImage, getText: @convention(c) (Program, UnsafeMutablePointer<CChar>) -> Int32
    /// "NVRTC 13.0"
    let version: String
}

extension Compiler {
    init() throws(MartletError) {
        let library = try DynamicLibrary(
            "NVRTC, NVIDIA's run-time compiler,", ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"])
        create = try library.symbol("nvrtcCreateProgram")
        compileProgram = try library.symbol("nvrtcCompileProgram")
        destroy = try library.symbol("nvrtcDestroyProgram")
        getLogSize = try library.symbol("nvrtcGetProgramLogSize")
        getLog = try library.symbol("nvrtcGetProgramLog")
        getImageSize = try library.symbol("nvrtcGetCUBINSize")
        getImage = try library.symbol("nvrtcGetCUBIN")
        getTextSize = try library.symbol("nvrtcGetPTXSize")
        getText = try library.symbol("nvrtcGetPTX")
        let getVersion: @convention(c) (UnsafeMutablePointer<Int32>, UnsafeMutablePointer<Int32>) -> Int32 =
            try library.symbol("nvrtcVersion")
        var major: Int32 = 0, minor: Int32 = 0
        _ = getVersion(&major, &minor)
        version = "NVRTC \(major).\(minor)"
        library.open(beside: "libnvrtc-builtins.so.\(major).\(minor)")
    }

    /// A cubin; of an architecture as text, PTX.
    func compile(_ variant: KernelVariant, for architecture: Architecture) throws(MartletError) -> [UInt8] {
        let file = variant.file
        guard let source = KernelSources.text[file] else {
            throw MartletError("there is no kernel source '\(file)'", because: "it is not embedded", fix: "report this")
        }
        let headers = KernelSources.headers
        let options =
            ["--gpu-architecture=\(architecture.name)", "-std=c++17", "-default-device"]
            + variant.defines.map { "-D\($0.name)=\($0.value)" }
        var program: Program = nil
        let made = withStrings(headers.map(\.text)) { texts in
            withStrings(headers.map(\.name)) { names in
                create(&program, source, file, Int32(headers.count), texts, names)
            }
        }
        guard made == 0 else { throw failure(file, options, "nvrtcCreateProgram gave \(made)") }
        defer { _ = destroy(&program) }
        let result = withStrings(options) { compileProgram(program, Int32(options.count), $0) }
        guard result == 0 else { throw failure(file, options, string(program, getLogSize, getLog)) }
        if architecture.overlapsKernels,
            let entry = Compiler.entryWithoutWait(in: string(program, getTextSize, getText))
        {
            throw failure(
                file, options, "\(entry) does not wait for the kernels before it: begin it with begin_kernel()")
        }
        let (getImageSize, getImage) = architecture.isText ? (getTextSize, getText) : (getImageSize, getImage)
        var size = 0
        guard getImageSize(program, &size) == 0, size > 0 else { throw failure(file, options, "no code was made") }
        return [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            buffer.withMemoryRebound(to: CChar.self) { chars in
                if let base = chars.baseAddress { _ = getImage(program, base) }
            }
            count = size
        }
    }

    /// The first entry of a PTX text that does anything but fetch its arguments before it waits for the kernels in front of
    /// it. Such a kernel may not be launched: see `LaunchAttribute.list`.
    static func entryWithoutWait(in ptx: String) -> String? {
        let harmless = [".", "ld.param", "cvta", "mov", "//", "{", ")"]
        var entry: String?
        for line in ptx.split(whereSeparator: \.isNewline) {
            let words = line.drop(while: \.isWhitespace)
            if words.hasPrefix(".visible .entry") {
                if entry != nil { return entry }
                entry = words.split(separator: " ").last.map { String($0.prefix { $0 != "(" }) }
            } else if words.hasPrefix("griddepcontrol.wait") {
                entry = nil
            } else if let entry, !words.isEmpty, !harmless.contains(where: words.hasPrefix) {
                return entry
            }
        }
        return entry
    }

    private func string(
        _ program: Program, _ getSize: (Program, UnsafeMutablePointer<Int>) -> Int32,
        _ get: (Program, UnsafeMutablePointer<CChar>) -> Int32
    ) -> String {
        var size = 0
        guard getSize(program, &size) == 0, size > 0 else { return "" }
        var bytes = [CChar](repeating: 0, count: size)
        _ = get(program, &bytes)
        return String(decoding: bytes.map(UInt8.init(bitPattern:)).prefix { $0 != 0 }, as: UTF8.self)
    }

    private func failure(_ file: String, _ options: [String], _ reason: String) -> MartletError {
        MartletError(
            "a GPU kernel does not compile", in: "\(file) \(options.joined(separator: " "))", because: reason,
            fix: "report this with the output of `martlet doctor`; 'device: cpu' does not need it")
    }
}

private func withStrings<Result>(
    _ strings: [String], _ body: (UnsafeMutablePointer<UnsafePointer<CChar>?>) -> Result
) -> Result {
    let copies = strings.map { string -> UnsafeMutablePointer<CChar> in
        let bytes = Array(string.utf8CString)
        let copy = UnsafeMutablePointer<CChar>.allocate(capacity: bytes.count)
        copy.initialize(from: bytes, count: bytes.count)
        return copy
    }
    defer { copies.forEach { $0.deallocate() } }
    var pointers = copies.map { UnsafePointer<CChar>?($0) } + [nil]
    return pointers.withUnsafeMutableBufferPointer { buffer in
        guard let base = buffer.baseAddress else { preconditionFailure("a list with an end is never empty") }
        return body(base)
    }
}

/// The sources that are embedded in the program.
enum KernelSources {
    /// By file name.
    static let text: [String: String] = {
        var text: [String: String] = [:]
        for source in UnsafeBufferPointer(start: martletKernelSources, count: martletKernelSourceCount) {
            text[String(cString: source.name)] = String(
                decoding: UnsafeBufferPointer(start: source.text, count: source.byteCount), as: UTF8.self)
        }
        return text
    }()
    static let headers = text.filter { $0.key.hasSuffix(".cuh") }.sorted { $0.key < $1.key }
        .map { (name: $0.key, text: $0.value) }
}

/// A source and its constants: what one cubin is made of.
struct KernelVariant: Hashable, Sendable {
    var file: String
    var defines: [KernelDefine]

    init(_ file: String, _ defines: [KernelDefine] = []) {
        self.file = file
        self.defines = defines
    }
}

/// A compile-time constant of a kernel.
struct KernelDefine: Hashable, Sendable {
    var name: String
    var value: Int

    init(_ name: String, _ value: Int) {
        self.name = name
        self.value = value
    }
}
