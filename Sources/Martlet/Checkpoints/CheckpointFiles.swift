internal import MartletCore
internal import MartletModel

/// The files of one training checkpoint: parameters.safetensors, optimizer.safetensors, trainer_state.json.
/// Tensors are stored exactly, in their own dtype.
struct CheckpointFiles {
    let parameters: [Parameter]
    let backend: any Backend

    private static let parametersName = "parameters.safetensors"
    private static let optimizerName = "optimizer.safetensors"

    /// What a name in a file stands for.
    private enum Content {
        case tensor(Tensor)
        case master(Master)

        var dtype: DType {
            if case .tensor(let tensor) = self { tensor.dtype } else { .float32 }
        }
        var shape: Shape {
            switch self {
            case .tensor(let tensor): tensor.shape
            case .master(let master): master.shape
            }
        }
    }

    private var moments: [(name: String, content: Content)] {
        parameters.flatMap { parameter in
            parameter.state.map { (parameter.name + "." + $0.name, .tensor($0.tensor)) }
        }
    }
    private var values: [(name: String, content: Content)] { parameters.map { ($0.name, .master($0.master)) } }

    /// Writes a checkpoint that appears at `path` whole or not at all.
    func write(_ state: TrainerState, to path: String) throws(MartletError) {
        let folder = try AtomicFolder(path, replaces: true)
        try write(values, to: folder.file(CheckpointFiles.parametersName))
        try write(moments, to: folder.file(CheckpointFiles.optimizerName))
        try AtomicFile.write(state.json.text(.pretty) + "\n", to: folder.file(TrainerState.fileName))
        try folder.commit()
    }

    private func write(_ contents: [(name: String, content: Content)], to path: String) throws(MartletError) {
        let byName = Dictionary(contents.map { ($0.name, $0.content) }, uniquingKeysWith: { first, _ in first })
        let descriptions = contents.map { TensorDescription($0.name, $0.content.dtype, $0.content.shape.array) }
        var buffer: [UInt8] = []
        try SafeTensorsWriter.write(descriptions, to: path) { (description, sink) throws(MartletError) in
            guard let content = byName[description.name] else { return }
            let count = content.shape.count, size = content.dtype.byteCount
            for start in stride(from: 0, to: count, by: 1 << 22) {
                let range = start..<min(start + 1 << 22, count)
                if buffer.count != range.count * size { buffer = [UInt8](repeating: 0, count: range.count * size) }
                buffer.withUnsafeMutableBytes { download(content, range, into: $0) }
                try buffer.withBytes { (bytes) throws(MartletError) in try sink.write(bytes) }
            }
        }
    }

    private func download(_ content: Content, _ range: Range<Int>, into bytes: UnsafeMutableRawBufferPointer) {
        switch content {
        case .tensor(let tensor): backend.download(tensor.reshaped([tensor.count]).rows(range), into: bytes)
        case .master(let master):
            bytes.withMemoryRebound(to: Float.self) { backend.download(master, range, into: $0) }
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

    private func upload(_ pairs: [(source: HostTensor, content: Content)]) {
        for (source, content) in pairs {
            source.withBytes { bytes in
                switch content {
                case .tensor(let tensor): backend.upload(bytes, as: tensor.dtype, into: tensor)
                case .master(let master): backend.upload(bytes, into: master)
                }
            }
        }
    }

    private func matched(
        _ contents: [(name: String, content: Content)], in path: String
    ) throws(MartletError) -> [(source: HostTensor, content: Content)] {
        let file = try SafeTensorsFile(path)
        guard file.tensors.count == contents.count else {
            throw mismatch(path, "it holds \(file.tensors.count) tensors, the run trains \(contents.count)")
        }
        var pairs: [(source: HostTensor, content: Content)] = []
        for (name, content) in contents {
            guard let source = file[name] else { throw mismatch(path, "it has no tensor '\(name)'") }
            guard source.dtype == content.dtype, source.shape == content.shape.array else {
                throw mismatch(
                    path,
                    "'\(name)' is \(source.dtypeName) \(source.shape), not \(content.dtype.rawValue) \(content.shape)")
            }
            pairs.append((source, content))
        }
        return pairs
    }

    private func mismatch(_ path: String, _ reason: String) -> MartletError {
        MartletError(
            "the checkpoint does not belong to this run", in: path, because: reason,
            fix: "resume with the recipe that wrote it, or start anew with another output_dir")
    }
}
