/// What is known of a tensor before its elements: enough for a header.
package struct TensorDescription: Sendable, Equatable {
    package var name: String
    package var dtype: DType
    package var shape: [Int]

    package init(_ name: String, _ dtype: DType, _ shape: [Int]) {
        self.name = name
        self.dtype = dtype
        self.shape = shape
    }

    package var count: Int { shape.reduce(1, *) }
    package var byteCount: Int { count * dtype.byteCount }
}

/// Takes the elements of one tensor, in as many pieces as its maker likes.
package struct TensorSink {
    package let tensor: TensorDescription
    private let file: AtomicFile
    fileprivate var written = 0
    private var scratch: [UInt8] = []

    fileprivate init(_ tensor: TensorDescription, _ file: AtomicFile) {
        self.tensor = tensor
        self.file = file
    }

    /// Appends elements of the tensor's own dtype.
    package mutating func write(_ bytes: UnsafeRawBufferPointer) throws(MartletError) {
        written += bytes.count
        try file.write(bytes)
    }

    /// Appends elements, rounding them to the tensor's dtype.
    package mutating func write(_ floats: [Float]) throws(MartletError) {
        let size = tensor.dtype.byteCount
        for start in stride(from: 0, to: floats.count, by: 1 << 20) {
            let piece = floats[start..<min(start + 1 << 20, floats.count)]
            if scratch.count < piece.count * size { scratch = [UInt8](repeating: 0, count: piece.count * size) }
            scratch.withUnsafeMutableBytes { bytes in
                piece.withUnsafeBufferPointer { convertFromFloat($0, as: tensor.dtype, into: bytes) }
            }
            try scratch.withBytes { (bytes) throws(MartletError) in
                try write(UnsafeRawBufferPointer(rebasing: bytes[..<(piece.count * size)]))
            }
        }
    }
}

/// Writes safetensors files, tensor by tensor, holding none of them; files appear whole or not at all.
package enum SafeTensorsWriter {
    package typealias Maker = (_ tensor: TensorDescription, _ sink: inout TensorSink) throws(MartletError) -> Void

    /// One file. `make` is called once a tensor: wide dtypes first, so that all are aligned, else in the order given, so that
    /// a maker can work through its source front to back.
    package static func write(
        _ tensors: [TensorDescription], to path: String, metadata: [String: String] = ["format": "pt"], _ make: Maker
    ) throws(MartletError) {
        let widths = Set(tensors.map(\.dtype.byteCount)).sorted(by: >)
        let ordered = widths.flatMap { width in tensors.filter { $0.dtype.byteCount == width } }
        let file = try AtomicFile(path)
        try file.write(header(ordered, metadata))
        for tensor in ordered {
            var sink = TensorSink(tensor, file)
            try make(tensor, &sink)
            precondition(sink.written == tensor.byteCount, "\(tensor.name): \(sink.written) bytes for \(tensor.shape)")
        }
        try file.commit()
    }

    /// `BASE.safetensors`, or, if the tensors need more than one file of `maximumShardSize` bytes, numbered shards and an
    /// index, named as the hub names them. Tensors are distributed in the order given.
    package static func writeFolder(
        _ tensors: [TensorDescription], to folder: String, base: String = "model",
        maximumShardSize: Int = 5_000_000_000,
        _ make: Maker
    ) throws(MartletError) {
        let shards = shards(tensors, maximumShardSize)
        guard shards.count > 1 else {
            return try write(tensors, to: FileSystem.join(folder, base + ".safetensors"), make)
        }
        var placed: [(name: String, file: String)] = []
        for (i, shard) in shards.enumerated() {
            let file = "\(base)-\(padded(i + 1))-of-\(padded(shards.count)).safetensors"
            try write(shard, to: FileSystem.join(folder, file), make)
            placed += shard.map { ($0.name, file) }
        }
        var map = JSONObject()
        for (name, file) in placed.sorted(by: { $0.name < $1.name }) { map[name] = .string(file) }
        let index: JSON = [
            "metadata": ["total_size": .integer(tensors.reduce(0) { $0 + $1.byteCount })], "weight_map": .object(map),
        ]
        try AtomicFile.write(index.text(.pretty) + "\n", to: FileSystem.join(folder, base + ".safetensors.index.json"))
    }

    private static func shards(_ tensors: [TensorDescription], _ limit: Int) -> [[TensorDescription]] {
        var shards: [[TensorDescription]] = [[]], size = 0
        for tensor in tensors {
            if size > 0, size + tensor.byteCount > limit {
                shards.append([])
                size = 0
            }
            shards[shards.count - 1].append(tensor)
            size += tensor.byteCount
        }
        return shards
    }

    private static func padded(_ number: Int) -> String {
        let digits = String(number)
        return String(repeating: "0", count: max(0, 5 - digits.count)) + digits
    }

    /// The header's length and the header, padded with spaces to a multiple of 8 bytes.
    private static func header(_ tensors: [TensorDescription], _ metadata: [String: String]) -> [UInt8] {
        var object = JSONObject()
        if !metadata.isEmpty {
            var strings = JSONObject()
            for (key, value) in metadata.sorted(by: { $0.key < $1.key }) { strings[key] = .string(value) }
            object["__metadata__"] = .object(strings)
        }
        var offset = 0
        for tensor in tensors {
            let end = offset + tensor.byteCount
            object[tensor.name] = [
                "dtype": .string(tensor.dtype.rawValue), "shape": .array(tensor.shape.map { .integer($0) }),
                "data_offsets": [.integer(offset), .integer(end)],
            ]
            offset = end
        }
        var text = Array(JSON.object(object).text(.compact).utf8)
        text += [UInt8](repeating: UInt8(ascii: " "), count: roundUp(text.count, to: 8) - text.count)
        return withUnsafeBytes(of: UInt64(text.count).littleEndian, Array.init) + text
    }
}
