public import MartletCore

extension Doctor {
    /// Holds whole models against what transformers and PEFT computed with them; a check a golden. `folder` is one, or holds
    /// some. In bfloat16, logits may be 2 % of the largest apart, losses 1 %, gradients 5 % of a tensor's largest; in float16 a
    /// quarter of that.
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
                detail: found.map {
                    "\($0.name) \(shortest($0.value))" + ($0.isSound ? "" : " where \(shortest($0.bound)) may be")
                }.joined(separator: ", "))
            doctor.checks.append(check)
            progress(check)
        }
        return doctor
    }
}
