import MartletCore
import MartletTestSupport
import Testing

@testable import MartletCUDA

/// Choices among tiles: which is taken, what is kept of it, and that nothing depends on it.
@Suite struct TileTests {
    private let kernel = KernelVariant("a.cu", [KernelDefine("WIDTH", 2048), KernelDefine("OFFSET", -1)])

    private struct Sized: Tile {
        let size: Int
        var defines: [KernelDefine] { [KernelDefine("SIZE", size)] }
    }
    private let candidates = [4, 8, 16].map(Sized.init)

    private func taken(_ tiles: Tiles, _ kernel: KernelVariant) -> Int? {
        var size: Int?
        tiles.cut(kernel, candidates) { size = $0.size }
        return size
    }

    // MARK: Picking

    /// Of candidates that take so many milliseconds in every round; 0 is one that cannot run.
    private func pick(_ milliseconds: [Double]) -> Int {
        TileTuning.pick(from: milliseconds.map { $0 == 0 ? [] : [Double](repeating: $0, count: 11) }).choice
    }

    @Test func theFastestIsTaken() {
        #expect(pick([1, 0.5, 0.4, 0.6]) == 2)
        #expect(pick([1]) == 0 && pick([0.4, 0.5]) == 0)
    }

    @Test func theUsualOneStaysWhereAnotherIsHardlyFaster() {
        #expect(pick([1, 0.98]) == 0)
        #expect(pick([1, 0.96]) == 1)
    }

    @Test func whatCannotRunIsNotTaken() {
        #expect(pick([1, 0, 0.5]) == 2)
        #expect(pick([0, 1]) == 1)
        #expect(pick([0, 0]) == 0)
    }

    /// A few rounds that were held up, and a few that are too fast.
    @Test func noiseDoesNotDecide() {
        let noisy = [90, 1, 1, 0.1, 1, 1, 1, 40, 1, 0.2, 1]
        let (choice, medians) = TileTuning.pick(from: [noisy.map { _ in 1 }, noisy])
        #expect(choice == 0 && medians == [1, 1])
    }

    @Test func smallKernelsAreTimedMoreOften() {
        #expect(TileTuning.rounds(of: 0) == 51 && TileTuning.rounds(of: 5) == 20 && TileTuning.rounds(of: 1000) == 11)
    }

    // MARK: What is in force

    @Test func theUsualTileIsTakenUnlessOneWasChosen() {
        let tiles = Tiles(), other = KernelVariant("a.cu", [KernelDefine("WIDTH", 768)])
        #expect(taken(tiles, kernel) == 4)
        tiles.chosen[kernel] = candidates[2].defines
        #expect(taken(tiles, kernel) == 16 && taken(tiles, other) == 4)
    }

    @Test func aTileThatIsNoCandidateIsNotTaken() {
        let tiles = Tiles()
        tiles.chosen[kernel] = [KernelDefine("SIZE", 5)]
        #expect(taken(tiles, kernel) == 4)
    }

    @Test func checksForceACandidate() {
        let tiles = Tiles()
        tiles.chosen[kernel] = candidates[2].defines
        tiles.forced = 1
        #expect(taken(tiles, kernel) == 8)
        tiles.forced = 3
        #expect(taken(tiles, kernel) == 4)
    }

    // MARK: What is kept

    private var entry: TileEntry {
        TileEntry(
            machine: "a GPU", shape: "E 128, 256 rows",
            answers: [
                TileAnswer(kernel: kernel, tile: candidates[1].defines, microseconds: 33.25, usualMicroseconds: 42.5),
                TileAnswer(kernel: KernelVariant("b.cu"), tile: [], microseconds: 1, usualMicroseconds: 1),
            ])
    }

    @Test func whatIsKeptIsFoundAgain() throws {
        let home = try TemporaryFolder(), files = KernelCache(folder: home.file("tiles"), suffix: "tiles")
        let cache = TileCache(machine: "a GPU", files: files)
        #expect(cache.read(entry.shape) == nil && cache.entries == [])
        cache.write(entry)
        #expect(cache.read(entry.shape) == entry && cache.entries == [entry])
        #expect(entry.answers.map(\.isUsual) == [false, true])
    }

    @Test func anotherMachineOrShapeHasNone() throws {
        let home = try TemporaryFolder(), files = KernelCache(folder: home.file("tiles"), suffix: "tiles")
        TileCache(machine: "a GPU", files: files).write(entry)
        #expect(TileCache(machine: "a GPU", files: files).read("E 128, 512 rows") == nil)
        let other = TileCache(machine: "another", files: files)
        #expect(other.read(entry.shape) == nil && other.entries == [])
    }

    /// Each is as if there were nothing: tiles are tried again.
    @Test func whatIsDamagedIsNotThere() throws {
        let home = try TemporaryFolder(), files = KernelCache(folder: home.file("tiles"), suffix: "tiles")
        let cache = TileCache(machine: "a GPU", files: files)
        cache.write(entry)
        let name = try #require(try FileSystem.list(home.file("tiles")).first)
        let whole = try home.bytes("tiles/\(name)")
        for count in [0, 10, 24, whole.count - 1] {
            try home.write(Array(whole[..<count]), to: "tiles/\(name)")
            #expect(cache.read(entry.shape) == nil && cache.entries == [])
        }
        for text in ["", "{}", "[1]", "{\"machine\": \"a GPU\", \"shape\": \"E 128, 256 rows\"}"] {
            files.write(Array(text.utf8), String(name.dropLast(6)))
            #expect(cache.read(entry.shape) == nil, "\(text)")
        }
        for wrong in ["SIZE", "SIZE=", "=8", "SIZE=8=8", "SIZE=x"] {
            let text = entry.json.text().replacing("SIZE=8", with: wrong)
            files.write(Array(text.utf8), String(name.dropLast(6)))
            #expect((cache.read(entry.shape) == nil) == (wrong != "=8"), "\(wrong)")
        }
    }

    @Test func theSettingIsOnOrOff() throws {
        func setting(_ name: String?) throws(MartletError) -> Bool {
            try isOn("MARTLET_TUNE", named: name, usually: true)
        }
        #expect(try setting(nil) && !setting("off") && setting("on"))
        let typo = expectRefusal("a typo") { _ = try setting("offf") }
        #expect(typo?.location == "MARTLET_TUNE" && typo?.remedy == "write 'off'")
    }

    // MARK: Candidates

    @Test(arguments: KernelCatalog.architectures)
    func candidatesFitInSharedMemory(_ architecture: Architecture) {
        let most = architecture.sharedBytes
        let portable = PortableTile.candidates(architecture)
        #expect(Set(portable).count == portable.count && !portable.isEmpty)
        for tile in portable {
            #expect(tile.sharedBytes <= most)
            // The finished tile takes the ring's place.
            #expect(128 * tile.columns * 2 <= tile.sharedBytes)
        }
        for size in [64, 96, 128, 192, 256] {
            let flash = FlashShape.candidates(headSize: size, architecture)
            #expect(Set(flash).count == flash.count && flash.allSatisfy { $0.fits(architecture) })
            #expect(flash.first == FlashShape(headSize: size, sharedBytes: most))
        }
        for rank in [16, 64] {
            let gradient = GradientTile.candidates(rank: rank, architecture)
            #expect(gradient.first?.depth == 2 && gradient.allSatisfy { $0.sharedBytes(rank: rank) <= most })
        }
    }
}
