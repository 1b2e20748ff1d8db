internal import MartletCore
internal import MartletModel

/// The files of one training checkpoint: parameters.safetensors, optimizer.safetensors, trainer_state.json.
/// Tensors are stored exactly, in their own dtype.
struct CheckpointFiles {
    let parameters: [Parameter]
    let backend: any Backend

    private static let parametersName = "parameters.safetensors"
    private static let optimizerName = "optimizer.safetensors"

    private var moments: [(name: String, tensor: Tensor)] {
        parameters.flatMap { parameter in parameter.state.map { (parameter.name + "." + $0.name, $0.tensor) } }
    }
    private var values: [(name: String, tensor: Tensor)] { parameters.map { ($0.name, $0.value) } }

    /// Writes a checkpoint that appears at `path` whole or not at all.
    func write(_ state: TrainerState, to path: String) throws(MartletError) {
        let folder = try AtomicFolder(path, replaces: true)
        try write(values, to: folder.file(CheckpointFiles.parametersName))
        try write(moments, to: folder.file(CheckpointFiles.optimizerName))
        try AtomicFile.write(state.json.text(.pretty) + "\n", to: folder.file(TrainerState.fileName))
        try folder.commit()
    }

    private func write(_ tensors: [(name: String, tensor: Tensor)], to path: String) throws(MartletError) {
        let byName = Dictionary(tensors.map { ($0.name, $0.tensor) }, uniquingKeysWith: { first, _ in first })
        let descriptions = tensors.map { TensorDescription($0.name, $0.tensor.dtype, $0.tensor.shape.array) }
        var buffer: [UInt8] = []
        try SafeTensorsWriter.write(descriptions, to: path) { (description, sink) throws(MartletError) in
            guard let tensor = byName[description.name] else { return }
            let flat = tensor.reshaped([tensor.count])
            for start in stride(from: 0, to: tensor.count, by: 1 << 22) {
                let piece = flat.rows(start..<min(start + 1 << 22, tensor.count))
                if buffer.count != piece.byteCount { buffer = [UInt8](repeating: 0, count: piece.byteCount) }
                buffer.withUnsafeMutableBytes { backend.download(piece, into: $0) }
                try buffer.withBytes { (bytes) throws(MartletError) in try sink.write(bytes) }
            }
        }
    }

    /// What a checkpoint remembers.
    static func state(at path: String) throws(MartletError) -> TrainerState {
        let file = FileSystem.join(path, TrainerState.fileName)
        return try TrainerState(FileSystem.readJSON(file), path: file)
    }

    /// Reads a checkpoint into the parameters and their moments. Everything is checked before anything is changed.
    func read(_ path: String) throws(MartletError) {
        let values = try matched(self.values, in: FileSystem.join(path, CheckpointFiles.parametersName))
        let moments = try matched(self.moments, in: FileSystem.join(path, CheckpointFiles.optimizerName))
        upload(values + moments)
    }

    /// Reads only the values, to end a run with.
    func readValues(_ path: String) throws(MartletError) {
        upload(try matched(values, in: FileSystem.join(path, CheckpointFiles.parametersName)))
    }

    private func upload(_ pairs: [(source: HostTensor, tensor: Tensor)]) {
        for (source, tensor) in pairs { source.withBytes { backend.upload($0, as: tensor.dtype, into: tensor) } }
    }

    private func matched(
        _ tensors: [(name: String, tensor: Tensor)], in path: String
    ) throws(MartletError) -> [(source: HostTensor, tensor: Tensor)] {
        let file = try SafeTensorsFile(path)
        guard file.tensors.count == tensors.count else {
            throw mismatch(path, "it holds \(file.tensors.count) tensors, the run trains \(tensors.count)")
        }
        var pairs: [(source: HostTensor, tensor: Tensor)] = []
        for (name, tensor) in tensors {
            guard let source = file[name] else { throw mismatch(path, "it has no tensor '\(name)'") }
            guard source.dtype == tensor.dtype, source.shape == tensor.shape.array else {
                throw mismatch(
                    path,
                    "'\(name)' is \(source.dtypeName) \(source.shape), not \(tensor.dtype.rawValue) \(tensor.shape)")
            }
            pairs.append((source, tensor))
        }
        return pairs
    }

    private func mismatch(_ path: String, _ reason: String) -> MartletError {
        MartletError(
            "the checkpoint does not belong to this run", in: path, because: reason,
            fix: "resume with the recipe that wrote it, or start anew with another output_dir")
    }
}
