import MartletCore

/// The files behind a list of paths. A folder stands for the data files right inside it, in the order of their names;
/// what it holds besides is named in `ignored`.
func datasetPaths(_ paths: [String]) throws(MartletError) -> (files: [String], ignored: [String]) {
    guard !paths.isEmpty else {
        throw MartletError("no data was given", fix: "name a file or a folder of files")
    }
    var files: [String] = []
    var ignored: [String] = []
    for path in paths {
        guard let kind = FileSystem.kind(of: path) else {
            throw MartletError("the data file does not exist", in: path, fix: "check the path")
        }
        guard kind == .folder else {
            files.append(path)
            continue
        }
        let known = files.count
        for name in try FileSystem.list(path) where !name.hasPrefix(".") {
            let inside = FileSystem.join(path, name)
            let isData =
                FileSystem.kind(of: inside) != .folder
                && DatasetFile.extensions.contains(DatasetFile.fileExtension(of: name))
            if isData { files.append(inside) } else { ignored.append(inside) }
        }
        guard files.count > known else {
            throw MartletError(
                "the folder holds no data files", in: path,
                because: "data files end in: \(DatasetFile.extensions.map { "." + $0 }.joined(separator: ", "))",
                fix: "name the files themselves, or rename them")
        }
    }
    return (files, ignored)
}
