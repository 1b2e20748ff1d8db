import Martlet
import MartletCore
import MartletTestSupport
import Testing

@Suite struct TensorBoardTests {
    /// RFC 3720, appendix B.4, and the usual check value.
    @Test func knownChecksums() {
        #expect(CRC32C.checksum(Array("123456789".utf8)) == 0xE306_9283)
        #expect(CRC32C.checksum([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
        #expect(CRC32C.checksum([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
        #expect(CRC32C.checksum((0..<32).map { UInt8($0) }) == 0x46DD_794E)
        #expect(CRC32C.checksum([]) == 0)
    }

    /// Bytes written by tensorboard 2.21's RecordWriter for b"abc".
    @Test func frame() {
        let expected: [UInt8] = [
            0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xB0, 0x99, 0x49, 0x0E, 0x61, 0x62,
            0x63, 0x6E, 0x57, 0xF1, 0x21,
        ]
        #expect(TFRecord.frame(Array("abc".utf8)) == expected)
    }

    @Test func everyRecordIsIntact() throws {
        let folder = try TemporaryFolder()
        try runToy(toyRecipe(folder), model: try ToyModel())
        let files = try FileSystem.list(folder.file("run/tensorboard"))
        #expect(files.count == 1 && files[0].hasPrefix("events.out.tfevents."))
        var rest = ArraySlice(try FileSystem.read(folder.file("run/tensorboard/\(files[0])"))), count = 0
        while !rest.isEmpty {
            let length = rest.prefix(8).reversed().reduce(0) { $0 << 8 | Int($1) }
            let record = Array(rest.prefix(16 + length))
            #expect(record == TFRecord.frame(Array(record.dropFirst(12).dropLast(4))))
            rest = rest.dropFirst(16 + length)
            count += 1
        }
        #expect(count == 11)
    }
}
