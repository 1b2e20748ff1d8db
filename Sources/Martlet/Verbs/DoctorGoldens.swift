public import MartletCore

extension Doctor {
    /// Holds whole models against what transformers and PEFT computed with them; a check a golden. `folder` is one, or holds
    /// some. `GoldenBounds` tells how far apart they may be.
    public static func examine(
        goldens folder: String, compute: Compute = Compute(), progress: (Check) -> Void = { _ in }
    ) throws(MartletError) -> Doctor {
        func isGolden(_ path: String) -> Bool { FileSystem.exists(FileSystem.join(path, "reference.safetensors")) }
        let inside = isGolden(folder) ? [] : try FileSystem.list(folder)
        let goldens = isGolden(folder) ? [folder] : inside.map { FileSystem.join(folder, $0) }.filter(isGolden)
        guard !goldens.isEmpty else {
            throw MartletError(
                "there are no goldens", in: folder, because: "no folder in it has a reference.safetensors",
                fix: "name Tests/ModelTests/ModelGoldens, or make some with tools/goldens/model.py")
        }
        var doctor = Doctor(checks: [])
        for path in goldens {
            let found = try Golden(folder: path, on: try compute.makeBackend()).distances()
            let check = Check(
                name: FileSystem.name(of: path), isSound: found.allSatisfy(\.isSound),
                detail: found.map(\.description).joined(separator: "; "))
            doctor.checks.append(check)
            progress(check)
        }
        return doctor
    }
}
