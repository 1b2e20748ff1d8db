import Foundation
import MartletCore
import MartletTestSupport
import Testing

/// A safetensors file's bytes from its pieces; `length` lies about the header's.
private func bytes(_ header: String, _ data: [UInt8] = [], length: UInt64? = nil) -> [UInt8] {
    withUnsafeBytes(of: (length ?? UInt64(header.utf8.count)).littleEndian, Array.init) + Array(header.utf8) + data
}

private let twoTensors =
    #"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"#
    + #""b":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}}"#
private let twoTensorsData: [UInt8] = [0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0, 0x80, 0x3F, 0x00, 0x40, 0x40, 0xC0]

/// A header, and how many bytes of zeros follow it.
private let wrongHeaders: [(name: String, header: String, dataCount: Int)] = [
    ("a tensor that is a number", #"{"a":1}"#, 0),
    ("a tensor that is null", #"{"a":null}"#, 0),
    ("no dtype", #"{"a":{"shape":[1],"data_offsets":[0,1]}}"#, 1),
    ("a number as dtype", #"{"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}}"#, 1),
    ("an unknown dtype", #"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4),
    ("a lower-case dtype", #"{"a":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}}"#, 4),
    ("no shape", #"{"a":{"dtype":"U8","data_offsets":[0,1]}}"#, 1),
    ("a negative extent", #"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, 1),
    ("two negative extents", #"{"a":{"dtype":"U8","shape":[-1,-1],"data_offsets":[0,1]}}"#, 1),
    ("a broken extent", #"{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}"#, 1),
    ("an extent in words", #"{"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}}"#, 1),
    ("an extent beyond Int", #"{"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,1]}}"#, 1),
    ("an overflowing shape", #"{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0),
    ("overflow to zero", #"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}}"#, 0),
    ("a shape too large", #"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}"#, 1),
    ("a shape too small", #"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,1]}}"#, 1),
    ("half a byte", #"{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}"#, 1),
    ("no offsets", #"{"a":{"dtype":"U8","shape":[1]}}"#, 1),
    ("one offset", #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1]}}"#, 1),
    ("three offsets", #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}"#, 1),
    ("a negative offset", #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#, 1),
    ("offsets backwards", #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}"#, 1),
    ("an offset outside", #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#, 1),
    (
        "an offset near Int.max",
        #"{"a":{"dtype":"U8","shape":[0],"data_offsets":[9223372036854775807,9223372036854775807]}}"#, 0
    ),
    ("a hole in front", #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#, 2),
    (
        "a hole between",
        #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#, 3
    ),
    (
        "an overlap",
        #"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#, 3
    ),
    (
        "the same bytes twice",
        #"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, 2
    ),
    (
        "a name twice",
        #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1
    ),
    ("a key twice", #"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1),
    ("metadata as a list", #"{"__metadata__":[]}"#, 0),
    ("numbers in the metadata", #"{"__metadata__":{"a":1}}"#, 0),
    ("an empty header", "", 0),
    ("a list as header", "[]", 0),
    ("a header of zeros", "\0\0\0\0", 0),
    ("data without tensors", "{}", 1),
    ("deep nesting", String(repeating: "[", count: 100_000), 0),
    ("deep objects", String(repeating: #"{"a":"#, count: 50_000), 0),
]

/// Lengths that the header of a valid file may claim wrongly.
private let wrongLengths: [UInt64] = [0, 1, 5000, 100_000_001, 1 << 32, 1 << 63, .max]

private let disguises: [(name: String, contents: [UInt8])] = [
    ("broken UTF-8", bytes("{\"", [0xFF, 0xFE], length: 4)),
    ("a git-lfs pointer", Array("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n".utf8)),
    ("a web page", Array("<!DOCTYPE html><html></html>".utf8)),
    ("a zip file", [0x50, 0x4B, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("a pickle", [0x80, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("a GGUF file", Array("GGUF............".utf8)),
    ("plain text", Array("hello, this is no tensor file\n".utf8)),
]

@Suite struct SafeTensorsReadingTests {
    @Test func readsWhatTheFormatSays() throws {
        let folder = try TemporaryFolder()
        let file = try SafeTensorsFile(folder.write(bytes(twoTensors, twoTensorsData), to: "x"))
        #expect(file.metadata == ["format": "pt"])
        #expect(file.tensors.map(\.name) == ["a", "b"])
        #expect(file["a"]?.shape == [2] && file["a"]?.dtype == .float32)
        #expect(try file["a"]?.floats() == [1, -2])
        #expect(try file["b"]?.floats() == [1, 2, -3])
        #expect(file["b"]?.shape == [1, 3] && file["c"] == nil)
    }

    @Test func emptyTensorsScalarsAndForeignTypesAreRead() throws {
        let folder = try TemporaryFolder()
        let header =
            #"{"e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},"s":{"dtype":"F16","shape":[],"data_offsets":[0,2]},"#
            + #""q":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[2,5]},"h":{"dtype":"F4","shape":[4],"data_offsets":[5,7]}}  "#
        let file = try SafeTensorsFile(folder.write(bytes(header, [0, 0x3C, 1, 2, 3, 4, 5]), to: "x"))
        #expect(try file["e"]?.floats() == [])
        #expect(try file["s"]?.floats() == [1])
        #expect(file["q"]?.dtypeName == "F8_E4M3" && file["q"]?.dtype == nil && file["h"]?.byteCount == 2)
        let error = expectRefusal("reading F8") { _ = try file["q"]?.floats() }
        #expect(error?.location?.contains("'q'") == true && error?.reason?.contains("F8_E4M3") == true)
    }

    @Test func everyTruncationIsRefused() throws {
        let folder = try TemporaryFolder(), whole = bytes(twoTensors, twoTensorsData)
        for count in 0..<whole.count {
            let path = try folder.write(Array(whole[..<count]), to: "x")
            expectRefusal("first \(count) bytes") { _ = try SafeTensorsFile(path) }
        }
    }

    private func expectMalformed(_ name: String, _ contents: [UInt8]) throws {
        let folder = try TemporaryFolder(), path = try folder.write(contents, to: "x.safetensors")
        let error = expectRefusal(name) { _ = try SafeTensorsFile(path) }
        #expect(error?.location?.contains("x.safetensors") == true)
    }

    @Test(arguments: wrongHeaders.indices) func wrongHeadersAreRefused(_ i: Int) throws {
        let (name, header, dataCount) = wrongHeaders[i]
        try expectMalformed(name, bytes(header, [UInt8](repeating: 0, count: dataCount)))
    }

    @Test(arguments: wrongLengths + [UInt64(twoTensors.utf8.count - 1), UInt64(twoTensors.utf8.count + 1)])
    func wrongLengthsAreRefused(_ length: UInt64) throws {
        try expectMalformed("length \(length)", bytes(twoTensors, twoTensorsData, length: length))
    }

    @Test(arguments: disguises.indices) func otherFilesAreRefused(_ i: Int) throws {
        try expectMalformed(disguises[i].name, disguises[i].contents)
    }

    @Test func trailingBytesAreRefused() throws {
        try expectMalformed("a byte too many", bytes(twoTensors, twoTensorsData + [0]))
    }

    @Test func aPlaceHolderIsNamed() throws {
        let folder = try TemporaryFolder(),
            path = try folder.write("version https://git-lfs.github.com/spec/v1\n", to: "x")
        #expect(expectRefusal("lfs") { _ = try SafeTensorsFile(path) }?.remedy?.contains("git lfs pull") == true)
    }

    @Test func thingsThatAreNoFilesAreRefused() throws {
        let folder = try TemporaryFolder()
        for path in [folder.file("absent"), folder.path, "/dev/null", "/dev/zero", folder.file("a\0b"), ""] {
            expectRefusal(path) { _ = try SafeTensorsFile(path) }
        }
    }

    /// Random damage to a valid header never traps; what is still accepted can be read to the last byte.
    @Test func mutatedHeadersNeverTrap() throws {
        let folder = try TemporaryFolder(), original = bytes(twoTensors, twoTensorsData)
        let interesting = Array("{}[]\",:-0123456789.eE\\uFnul \n\0\u{7F}".utf8) + [0x80, 0xC3, 0xFF]
        var stream = RandomStream(seed: 42), accepted = 0
        for _ in 0..<4000 {
            var mutant = original
            for _ in 0...Int.random(in: 0..<4, using: &stream) {
                let place = Int.random(in: 0..<mutant.count, using: &stream)
                switch Int.random(in: 0..<5, using: &stream) {
                case 0: mutant[place] ^= 1 << UInt8.random(in: 0..<8, using: &stream)
                case 1: mutant[place] = interesting.randomElement(using: &stream) ?? 0
                case 2: mutant.insert(interesting.randomElement(using: &stream) ?? 0, at: place)
                case 3: mutant.remove(at: place)
                default:
                    let end = min(mutant.count, place + Int.random(in: 1..<12, using: &stream))
                    mutant.insert(
                        contentsOf: Array(mutant[place..<end]), at: Int.random(in: 0..<mutant.count, using: &stream))
                }
            }
            // Mostly let the length be right, so that the damage reaches the parser.
            if Bool.random(using: &stream), mutant.count > 22 {
                let length = UInt64(mutant.count - 22)
                mutant.replaceSubrange(0..<8, with: withUnsafeBytes(of: length.littleEndian, Array.init))
            }
            do {
                let file = try SafeTensorsFile(folder.write(mutant, to: "x"))
                accepted += 1
                for tensor in file.tensors {
                    #expect(tensor.withBytes { $0.reduce(0) { $0 &+ Int($1) } } >= 0)
                    if let dtype = tensor.dtype, dtype.isFloat { #expect(try tensor.floats().count == tensor.count) }
                }
            } catch let error as MartletError {
                #expect(error.remedy != nil, "\(error)")
            }
        }
        #expect((1..<3000).contains(accepted))
    }
}

@Suite struct SafeTensorsWritingTests {
    private func write(
        _ tensors: [(String, DType, [Int])], to path: String, sharded: Int? = nil
    ) throws -> [String: [Float]] {
        var values: [String: [Float]] = [:]
        for (i, (name, _, shape)) in tensors.enumerated() {
            values[name] = (0..<shape.reduce(1, *)).map { Float($0 * 2 + i) - 4 }
        }
        let descriptions = tensors.map { TensorDescription($0.0, $0.1, $0.2) }
        let make: SafeTensorsWriter.Maker = { (tensor, sink) throws(MartletError) in
            let all = values[tensor.name] ?? [], half = all.count / 2
            try sink.write(Array(all[..<half]))
            try sink.write(Array(all[half...]))
        }
        if let sharded {
            try SafeTensorsWriter.writeFolder(descriptions, to: path, maximumShardSize: sharded, make)
        } else {
            try SafeTensorsWriter.write(descriptions, to: path, make)
        }
        return values
    }

    private let tensors: [(String, DType, [Int])] = [
        ("odd \"name\" é", .float16, [3]), ("b", .float32, [2, 3]), ("a", .bfloat16, [5]), ("empty", .float32, [0]),
        ("scalar", .float32, []),
    ]

    @Test func whatIsWrittenIsRead() throws {
        let folder = try TemporaryFolder(), path = folder.file("x.safetensors")
        let values = try write(tensors, to: path), file = try SafeTensorsFile(path)
        #expect(file.metadata == ["format": "pt"])
        #expect(Set(file.tensors.map(\.name)) == Set(values.keys))
        for (name, dtype, shape) in tensors {
            #expect(file[name]?.dtype == dtype && file[name]?.shape == shape)
            #expect(try file[name]?.floats() == values[name])
            #expect(
                file[name]?.withBytes { UInt(bitPattern: $0.baseAddress) % UInt(dtype.byteCount) } == 0,
                "\(name) is aligned")
        }
        #expect(try FileSystem.read(path).withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) } % 8 == 0)
        #expect(try folder.names == ["x.safetensors"])
    }

    @Test func shardsFollowTheHub() throws {
        let folder = try TemporaryFolder()
        let values = try write(tensors, to: folder.path, sharded: 30)
        #expect(
            try folder.names == [
                "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
            ])
        let index = try FileSystem.readJSON(folder.file("model.safetensors.index.json"))
        #expect(index["metadata"]?["total_size"] == 44)
        #expect(index["weight_map"]?["b"] == "model-00001-of-00002.safetensors")
        let read = try SafeTensorsFolder(folder.path)
        #expect(read.tensors.count == tensors.count)
        for (name, _, _) in tensors { #expect(try read[name]?.floats() == values[name]) }
    }

    @Test func aFailingMakerLeavesNothing() throws {
        let folder = try TemporaryFolder(), path = try folder.write("before", to: "x.safetensors")
        let failure = MartletError("no", because: "no", fix: "no")
        let error = expectRefusal("maker") {
            try SafeTensorsWriter.write([TensorDescription("a", .float32, [4])], to: path) {
                (_, sink) throws(MartletError) in
                try sink.write([1, 2])
                throw failure
            }
        }
        #expect(error == failure)
        #expect(try folder.names == ["x.safetensors"])
        #expect(try FileSystem.read(path) == Array("before".utf8))
    }
}

@Suite struct SafeTensorsFolderTests {
    private func index(_ map: String) -> String { #"{"metadata":{},"weight_map":\#(map)}"# }

    @Test(arguments: [
        ("no map", #"{"metadata":{}}"#), ("an empty map", #"{"weight_map":{}}"#), ("a list", #"{"weight_map":[]}"#),
        ("not JSON", "{"),
        ("a missing shard", #"{"weight_map":{"a":"two.safetensors"}}"#), ("a number", #"{"weight_map":{"a":1}}"#),
        ("a path upwards", #"{"weight_map":{"a":"../one.safetensors"}}"#),
        ("an absolute path", #"{"weight_map":{"a":"/one.safetensors"}}"#),
        ("another kind of file", #"{"weight_map":{"a":"one.bin"}}"#),
        ("a lost tensor", #"{"weight_map":{"z":"one.safetensors"}}"#),
    ])
    func wrongIndexesAreRefused(_ name: String, _ index: String) throws {
        let folder = try TemporaryFolder()
        try folder.write(bytes(twoTensors, twoTensorsData), to: "one.safetensors")
        try folder.write(index, to: "model.safetensors.index.json")
        expectRefusal(name) { _ = try SafeTensorsFolder(folder.path) }
    }

    @Test func onlyWhatTheIndexNamesIsRead() throws {
        let folder = try TemporaryFolder()
        try folder.write(bytes(twoTensors, twoTensorsData), to: "one.safetensors")
        try folder.write("not even a tensor file", to: "other.safetensors")
        try folder.write(index(#"{"b":"one.safetensors"}"#), to: "model.safetensors.index.json")
        #expect(try SafeTensorsFolder(folder.path).tensors.map(\.name) == ["b"])
    }

    @Test func aFolderWithoutWeightsSaysWhatIsThere() throws {
        let folder = try TemporaryFolder()
        expectRefusal("empty") { _ = try SafeTensorsFolder(folder.path) }
        try folder.write("x", to: "pytorch_model.bin")
        #expect(
            expectRefusal("bin") { _ = try SafeTensorsFolder(folder.path) }?.reason?.contains("pytorch_model.bin")
                == true)
    }
}
