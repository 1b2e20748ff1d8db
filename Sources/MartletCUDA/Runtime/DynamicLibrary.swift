internal import MartletCore

#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// A library of NVIDIA's that is found when the program runs: nothing links CUDA.
struct DynamicLibrary: @unchecked Sendable {
    private let handle: UnsafeMutableRawPointer
    /// Empty if the loader found it.
    private let folder: String
    /// "libnvrtc.so.13 (/usr/local/cuda/lib64)"
    let description: String

    /// Opens the first of `names` that some folder has. Tried, in this order: `MARTLET_CUDA_PATH`, what the loader finds
    /// (`LD_LIBRARY_PATH`, ldconfig), CUDA's own folders, and the `nvidia/*/lib` folders of Python environments.
    init(_ what: String, _ names: [String], folders: [String] = DynamicLibrary.standardFolders) throws(MartletError) {
        var tried: [String] = []
        for folder in folders {
            for name in names {
                let path = folder.isEmpty ? name : "\(folder)/\(name)"
                if !folder.isEmpty, access(path, R_OK) != 0 { continue }
                if let handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL) {
                    self.handle = handle
                    self.folder = folder
                    description = "\(name) (\(folder.isEmpty ? "found by the loader" : folder))"
                    return
                }
                if !folder.isEmpty { tried.append("\(path): \(dlerror().map { String(cString: $0) } ?? "")") }
            }
        }
        throw MartletError(
            "\(what) was not found", in: names.joined(separator: " or "),
            because: tried.isEmpty
                ? "neither the loader nor \(folders.filter { !$0.isEmpty }.joined(separator: ", ")) has it"
                : tried.joined(separator: "; "),
            fix: "install it (`pip install nvidia-cuda-nvrtc nvidia-cublas nvidia-cudnn-cu13` or NVIDIA's packages), "
                + "or name its folder with --cuda-path (MARTLET_CUDA_PATH); or train on the CPU with 'device: cpu'")
    }

    /// Opens what this library loads later by its bare name: the loader does not look in its folder, but remembers.
    func open(beside name: String) {
        if !folder.isEmpty { _ = dlopen("\(folder)/\(name)", RTLD_NOW | RTLD_GLOBAL) }
    }

    /// A function of the library.
    func symbol<Function>(_ name: String, as: Function.Type = Function.self) throws(MartletError) -> Function {
        guard let pointer = dlsym(handle, name) else {
            throw MartletError(
                "\(description) has no function '\(name)'", because: "it is older than Martlet needs",
                fix: "update the driver (580 or newer for CUDA 13, 525 for CUDA 12) or that library")
        }
        return unsafeBitCast(pointer, to: Function.self)
    }

    /// Folders to look in; the empty one is the loader's own search.
    static let standardFolders: [String] = {
        var folders: [String] = []
        if let chosen = getenv("MARTLET_CUDA_PATH").map({ String(cString: $0) }) {
            for folder in chosen.split(separator: ":") {
                folders += [String(folder), "\(folder)/lib64", "\(folder)/lib"]
            }
        }
        folders.append("")
        for variable in ["CUDA_HOME", "CUDA_PATH"] {
            if let home = getenv(variable).map({ String(cString: $0) }) { folders.append("\(home)/lib64") }
        }
        folders += ["/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/wsl/lib", "/usr/lib64"]
        return folders + pythonFolders
    }()

    /// The `lib` folders of NVIDIA's wheels in the active environment and the usual ones.
    private static var pythonFolders: [String] {
        var roots: [String] = []
        for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
            if let root = getenv(variable).map({ String(cString: $0) }) { roots.append(root) }
        }
        // The environment of the `python3` on the path, where it is one.
        for folder in (getenv("PATH").map { String(cString: $0) } ?? "").split(separator: ":") {
            if access("\(folder)/python3", X_OK) == 0 { roots.append(String(folder.dropLast("/bin".count))) }
        }
        if let home = getenv("HOME").map({ String(cString: $0) }) { roots.append("\(home)/.local") }
        return roots.flatMap { expand("\($0)/lib/python3*/*-packages/nvidia/*/lib") }
    }

    private static func expand(_ pattern: String) -> [String] {
        var found = glob_t()
        defer { globfree(&found) }
        guard glob(pattern, 0, nil, &found) == 0, let paths = found.gl_pathv else { return [] }
        return (0..<Int(found.gl_pathc)).compactMap { paths[$0].map { String(cString: $0) } }
    }
}
