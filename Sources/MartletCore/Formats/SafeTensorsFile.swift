/// A tensor of a mapped file, in host memory. It keeps the file mapped.
package struct HostTensor: Sendable {
    package let name: String
    /// The dtype as the file names it; `dtype` is nil where the format knows it and Martlet does not (F8_E4M3, ...).
    package let dtypeName: String
    package let shape: [Int]
    package let file: MappedFile
    fileprivate let range: Range<Int>

    package var dtype: DType? { DType(rawValue: dtypeName) }
    package var count: Int { shape.reduce(1, *) }
    package var byteCount: Int { range.count }

    /// The elements, row-major, little-endian, not necessarily aligned; mapped while `body` runs.
    package func withBytes<T, E>(_ body: (UnsafeRawBufferPointer) throws(E) -> T) throws(E) -> T {
        try file.withBytes { (bytes) throws(E) in try body(UnsafeRawBufferPointer(rebasing: bytes[range])) }
    }

    /// Gives the tensor's memory back to the system until it is touched again.
    package func releasePages() { file.releasePages(of: range) }

    /// Where the tensor stands, for error messages.
    package var location: String { "\(file.path), tensor '\(name)'" }

    /// The dtype, if the elements are floating-point numbers that Martlet can read.
    package func floatDType() throws(MartletError) -> DType {
        if let dtype, dtype.isFloat { return dtype }
        throw MartletError(
            "a weight has a dtype that cannot be read as numbers", in: location,
            because: "it is \(dtypeName); Martlet reads F32, BF16 and F16",
            fix: dtypeName.hasPrefix("F8") || dtypeName.hasPrefix("F4")
                ? "this checkpoint is quantised; use the repository's BF16 version" : "save the tensor as BF16")
    }

    /// The elements as float32.
    package func floats() throws(MartletError) -> [Float] {
        let dtype = try floatDType()
        return [Float](unsafeUninitializedCapacity: count) { buffer, initialized in
            withBytes { convertToFloat($0, as: dtype, into: buffer) }
            initialized = count
        }
    }

    /// The largest magnitude of all elements.
    package func largestMagnitude() throws(MartletError) -> Float {
        let dtype = try floatDType()
        return withBytes { MartletCore.largestMagnitude($0, as: dtype) }
    }

    /// Whether an element is infinite or not a number.
    package var hasNonFinite: Bool { dtype.map { dtype in withBytes { containsNonFinite($0, as: dtype) } } ?? false }
}

/// A safetensors file (github.com/huggingface/safetensors): 8 bytes of little-endian header length, a JSON header of
/// {name: {dtype, shape, data_offsets}}, then the tensors' bytes without holes. Nothing in the header is believed.
package final class SafeTensorsFile: Sendable {
    package let path: String
    /// In the order of their bytes.
    package let tensors: [HostTensor]
    /// `__metadata__`.
    package let metadata: [String: String]
    private let index: [String: Int]

    package init(_ path: String) throws(MartletError) {
        self.path = path
        let file = try MappedFile(path)
        do throws(MartletError) {
            let header = try SafeTensorsHeader(file)
            tensors = header.tensors
            metadata = header.metadata
            index = Dictionary(header.tensors.enumerated().map { ($1.name, $0) }) { first, _ in first }
        } catch {
            throw error.at(path)
        }
    }

    package subscript(name: String) -> HostTensor? { index[name].map { tensors[$0] } }
}

private struct SafeTensorsHeader {
    var tensors: [HostTensor] = []
    var metadata: [String: String] = [:]
    private let file: MappedFile
    private var dataStart = 8

    init(_ file: MappedFile) throws(MartletError) {
        self.file = file
        try file.withBytes { (bytes) throws(MartletError) in try parse(bytes) }
    }

    private mutating func parse(_ bytes: UnsafeRawBufferPointer) throws(MartletError) {
        if let disguise = recognizedDisguise(bytes) { throw disguise }
        guard bytes.count >= 8 else {
            throw damaged("it is \(bytes.count) bytes long, shorter than the 8 bytes of its header's length")
        }
        let length = UInt64(littleEndian: bytes.loadUnaligned(as: UInt64.self))
        guard length <= 100_000_000 else {
            throw damaged("its header claims \(length) bytes; the format allows 100000000")
        }
        guard length >= 2, Int(length) <= bytes.count - 8 else {
            throw damaged("its header claims \(length) bytes, and \(bytes.count - 8) follow")
        }
        dataStart = 8 + Int(length)
        let json = try JSON(parsing: UnsafeRawBufferPointer(rebasing: bytes[8..<dataStart]), rejectsRepeatedKeys: true)
        guard let object = json.object else { throw damaged("its header is \(json.kind), not an object") }
        tensors.reserveCapacity(object.count)
        for (name, value) in object {
            if name == "__metadata__" { metadata = try strings(value) } else { tensors.append(try tensor(name, value)) }
        }
        try checkCover()
    }

    private func strings(_ value: JSON) throws(MartletError) -> [String: String] {
        guard let object = value.object else { throw damaged("'__metadata__' is \(value.kind), not an object") }
        var strings: [String: String] = [:]
        for (key, value) in object {
            guard let string = value.string else { throw damaged("metadata '\(key)' is \(value.kind), not a string") }
            strings[key] = string
        }
        return strings
    }

    private func tensor(_ name: String, _ value: JSON) throws(MartletError) -> HostTensor {
        guard let dtype = value["dtype"]?.string else { throw damaged("it has no dtype", name) }
        guard let bits = elementBits[dtype] else {
            throw MartletError(
                "a tensor has an unknown dtype", in: "tensor '\(name)'", because: "the file says '\(dtype)'",
                fix: "save it with a current safetensors library, as BF16 or F32")
        }
        let shape = try integers(value["shape"], "shape", name)
        let offsets = try integers(value["data_offsets"], "data_offsets", name)
        guard offsets.count == 2, offsets[0] <= offsets[1], offsets[1] <= file.byteCount - dataStart else {
            throw damaged(
                "its data_offsets are \(offsets), and the file holds \(file.byteCount - dataStart) bytes of data", name)
        }
        var total = bits
        for extent in shape {
            let (product, overflows) = total.multipliedReportingOverflow(by: extent)
            guard !overflows else { throw damaged("its shape \(shape) is larger than any memory", name) }
            total = product
        }
        guard total % 8 == 0, total / 8 == offsets[1] - offsets[0] else {
            throw damaged(
                "its shape \(shape) of \(dtype) needs \(total / 8) bytes and has \(offsets[1] - offsets[0])", name)
        }
        return HostTensor(
            name: name, dtypeName: dtype, shape: shape, file: file,
            range: dataStart + offsets[0]..<dataStart + offsets[1])
    }

    private func integers(_ value: JSON?, _ key: String, _ name: String) throws(MartletError) -> [Int] {
        guard let array = value?.array else {
            throw damaged("its \(key) is \(value?.kind ?? "missing"), not a list", name)
        }
        var integers: [Int] = []
        for item in array {
            guard case .integer(let integer) = item, integer >= 0 else {
                throw damaged("its \(key) holds something that is not a whole number from 0 up", name)
            }
            integers.append(integer)
        }
        return integers
    }

    /// Every byte of the data belongs to exactly one tensor. Leaves `tensors` in the order of their bytes.
    private mutating func checkCover() throws(MartletError) {
        tensors.sort {
            ($0.range.lowerBound, $0.range.upperBound, $0.name) < ($1.range.lowerBound, $1.range.upperBound, $1.name)
        }
        var end = dataStart
        for tensor in tensors {
            guard tensor.range.lowerBound == end else {
                throw tensor.range.lowerBound < end
                    ? damaged("its bytes overlap another tensor's", tensor.name)
                    : damaged("\(tensor.range.lowerBound - end) bytes before it belong to no tensor", tensor.name)
            }
            end = tensor.range.upperBound
        }
        guard end == file.byteCount else {
            throw damaged("\(file.byteCount - end) bytes at its end belong to no tensor")
        }
    }

    private func damaged(_ reason: String, _ tensor: String? = nil) -> MartletError {
        MartletError(
            "the safetensors file is damaged", in: tensor.map { "tensor '\($0)'" }, because: reason,
            fix: "download or save the file again; `sha256sum` compares it with the original")
    }
}

/// Bits of an element of every dtype of the format.
private let elementBits: [String: Int] = [
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
]

/// Files that are often found where a safetensors file should be.
private func recognizedDisguise(_ bytes: UnsafeRawBufferPointer) -> MartletError? {
    func starts(_ prefix: String) -> Bool { bytes.prefix(prefix.utf8.count).elementsEqual(prefix.utf8) }
    let (what, fix): (String, String)
    if bytes.isEmpty {
        (what, fix) = ("it is empty", "download or save the file again")
    } else if starts("version https://git-lfs") {
        (what, fix) = (
            "it is a git-lfs pointer, the place-holder of a file not yet downloaded",
            "run `git lfs pull` in that folder"
        )
    } else if starts("<!DOCTYPE") || starts("<!doctype") || starts("<html") {
        (what, fix) = ("it is a web page", "download the file itself, not the page that shows it")
    } else if starts("PK\u{03}\u{04}") || starts("\u{7F}ELF") || bytes.starts(with: [0x80, 0x02]) {
        (what, fix) = ("it is a PyTorch or zip file", "convert the model to safetensors first")
    } else if starts("GGUF") {
        (what, fix) = ("it is a GGUF file", "use the model's safetensors repository")
    } else {
        return nil
    }
    return MartletError("not a safetensors file", because: what, fix: fix)
}
