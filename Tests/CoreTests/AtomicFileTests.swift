import Foundation
import MartletCore
import MartletTestSupport
import Testing

@Suite struct AtomicFileTests {
    @Test func theFileAppearsAtCommitOnly() throws {
        let folder = try TemporaryFolder(), path = try folder.write("old", to: "x")
        let file = try AtomicFile(path)
        try file.write(Array("new".utf8))
        #expect(try FileSystem.read(path) == Array("old".utf8))
        #expect(try folder.names.count == 2)
        try file.commit()
        #expect(try FileSystem.read(path) == Array("new".utf8))
        #expect(try folder.names == ["x"])
    }

    @Test func anAbandonedFileLeavesNothing() throws {
        let folder = try TemporaryFolder()
        do {
            let file = try AtomicFile(folder.file("x"))
            try file.write([1, 2, 3])
        }
        #expect(try folder.names.isEmpty)
    }

    @Test func unwritablePlacesAreRefused() throws {
        let folder = try TemporaryFolder()
        try folder.write("a file", to: "file")
        try FileSystem.makeFolder(folder.file("full"))
        try folder.write("x", to: "full/x")
        let long = folder.file(String(repeating: "n", count: 300))
        for path in [folder.file("absent/x"), folder.file("file/x"), long, "/proc/x", folder.file("full")] {
            expectRefusal(path) { try AtomicFile.write("text", to: path) }
        }
        #expect(try folder.names == ["file", "full"])
        for path in [folder.file("file/x"), "/proc/x/y"] {
            expectRefusal(path) { _ = try AtomicFolder(path) }
            expectRefusal(path) { try FileSystem.makeFolder(path) }
        }
        expectRefusal("list") { _ = try FileSystem.list(folder.file("absent")) }
    }

    @Test func aFullDeviceIsAnError() throws {
        let device = open("/dev/full", O_WRONLY)
        guard device >= 0 else { return }
        defer { close(device) }
        let error = expectRefusal("full") {
            try [UInt8](repeating: 1, count: 5).withBytes { (bytes) throws(MartletError) in
                try writeAll(bytes, to: device, "out")
            }
        }
        #expect(error?.location == "out" && error?.remedy?.contains("df -h") == true)
    }

    /// A real file system of 64 KiB, where the machine lets tests mount one.
    @Test func aFullDiskLeavesNothingHalfWritten() throws {
        let folder = try TemporaryFolder()
        func run(_ tool: String, _ arguments: [String]) -> Bool {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: tool)
            process.arguments = arguments
            process.standardError = FileHandle.nullDevice
            guard (try? process.run()) != nil else { return false }
            process.waitUntilExit()
            return process.terminationStatus == 0
        }
        guard run("/bin/mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", folder.path]) else { return }
        defer { _ = run("/bin/umount", [folder.path]) }
        let path = try folder.write("before", to: "model.safetensors")
        let error = expectRefusal("full disk") {
            try SafeTensorsWriter.write([TensorDescription("a", .float32, [1 << 16])], to: path) {
                (_, sink) throws(MartletError) in
                for _ in 0..<16 { try sink.write([Float](repeating: 1, count: 4096)) }
            }
        }
        #expect(error?.remedy?.contains("df -h") == true)
        #expect(try folder.names == ["model.safetensors"])
        #expect(try FileSystem.read(path) == Array("before".utf8))
    }

    @Test func foldersAppearWhole() throws {
        let folder = try TemporaryFolder(), path = folder.file("a/b/out")
        do {
            let abandoned = try AtomicFolder(path)
            try AtomicFile.write("x", to: abandoned.file("x"))
        }
        #expect(try FileSystem.list(folder.file("a/b")).isEmpty)
        let first = try AtomicFolder(path)
        try AtomicFile.write("1", to: first.file("x"))
        #expect(!FileSystem.exists(path))
        try first.commit()
        #expect(try FileSystem.list(path) == ["x"])
        #expect(expectRefusal("taken") { _ = try AtomicFolder(path) }?.location == path)
        let second = try AtomicFolder(path, replaces: true)
        try AtomicFile.write("2", to: second.file("y"))
        #expect(try FileSystem.list(path) == ["x"])
        try second.commit()
        #expect(try FileSystem.list(path) == ["y"])
        #expect(try FileSystem.list(folder.file("a/b")) == ["out"])
    }

    @Test func pathsAreTakenApart() {
        #expect(FileSystem.folder(of: "/a/b/") == "/a" && FileSystem.name(of: "/a/b/") == "b")
        #expect(FileSystem.folder(of: "b") == "." && FileSystem.folder(of: "/b") == "/")
        #expect(FileSystem.join("a/", "b") == "a/b" && FileSystem.join("", "b") == "b")
    }
}
