/// The tensors of a hub folder: `BASE.safetensors`, or the shards that `BASE.safetensors.index.json` names and no others.
/// All files are mapped when it is made, which reads their headers only.
package final class SafeTensorsFolder: Sendable {
    package let path: String
    /// By file, then in the order of their bytes.
    package let tensors: [HostTensor]
    private let index: [String: Int]
    private let files: [MappedFile]

    package init(_ folder: String, base: String = "model") throws(MartletError) {
        path = folder
        let single = FileSystem.join(folder, base + ".safetensors")
        let indexPath = FileSystem.join(folder, base + ".safetensors.index.json")
        if FileSystem.exists(indexPath) {
            tensors = try shardedTensors(folder, indexPath)
        } else if FileSystem.exists(single) {
            tensors = try SafeTensorsFile(single).tensors
        } else {
            throw missing(base, in: folder)
        }
        index = Dictionary(tensors.enumerated().map { ($1.name, $0) }) { first, _ in first }
        files = tensors.reduce(into: []) { if $0.last !== $1.file { $0.append($1.file) } }
    }

    /// Gives the memory of all that was read back to the system, until it is touched again. (The system maps neighbours of
    /// what is touched, so giving back single tensors is not enough.)
    package func releasePages() {
        for file in files { file.releasePages(of: 0..<file.byteCount) }
    }

    package subscript(name: String) -> HostTensor? { index[name].map { tensors[$0] } }
}

private func missing(_ base: String, in folder: String) -> MartletError {
    let names = (try? FileSystem.list(folder)) ?? []
    let others = names.filter { name in
        [".bin", ".pt", ".pth", ".gguf", ".safetensors"].contains { name.hasSuffix($0) }
    }
    return MartletError(
        "the folder holds no weights", in: folder,
        because: "there is neither '\(base).safetensors' nor '\(base).safetensors.index.json'"
            + (others.isEmpty ? "" : ", only \(others.prefix(4).joined(separator: ", "))"),
        fix: others.isEmpty
            ? "give the folder of a downloaded model, or download it again completely"
            : "give a folder with the model's safetensors files in the hub's names")
}

/// The tensors that the index places, each taken from the file the index names.
private func shardedTensors(_ folder: String, _ indexPath: String) throws(MartletError) -> [HostTensor] {
    func broken(_ reason: String) -> MartletError {
        MartletError(
            "the index of the weights is wrong", in: indexPath, because: reason,
            fix: "download the index and the files it names again, all of the same version")
    }
    let json = try FileSystem.readJSON(indexPath)
    guard let map = json["weight_map"]?.object else { throw broken("it has no object 'weight_map'") }
    var namesOfFile: [String: Set<String>] = [:]
    for (name, value) in map {
        guard let file = value.string, file.hasSuffix(".safetensors"), !file.contains("/"), !file.contains("\0") else {
            throw broken("tensor '\(name)' is not placed in a safetensors file of the same folder")
        }
        namesOfFile[file, default: []].insert(name)
    }
    guard !namesOfFile.isEmpty else { throw broken("it names no tensors") }
    var tensors: [HostTensor] = []
    tensors.reserveCapacity(map.count)
    for (file, names) in namesOfFile.sorted(by: { $0.key < $1.key }) {
        let path = FileSystem.join(folder, file)
        guard FileSystem.exists(path) else { throw broken("it names '\(file)', which is not there") }
        let found = try SafeTensorsFile(path).tensors.filter { names.contains($0.name) }
        if found.count < names.count, let lost = names.subtracting(found.map(\.name)).min() {
            throw broken("'\(file)' does not hold '\(lost)'")
        }
        tensors += found
    }
    return tensors
}
