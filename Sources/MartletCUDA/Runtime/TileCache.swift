internal import MartletCore

/// What tuning found for one GPU and one shape, kept beside the compiled kernels and as safely: what is damaged, or cannot
/// be read, is not there.
struct TileCache: Sendable {
    /// GPU, driver and compiler: what else the times depend on.
    let machine: String
    let files: KernelCache

    init(machine: String, files: KernelCache = .tiles) { (self.machine, self.files) = (machine, files) }

    func read(_ shape: String) -> TileEntry? {
        guard let entry = files.read(key(shape)).flatMap(TileEntry.init), entry.machine == machine, entry.shape == shape
        else { return nil }
        return entry
    }

    func write(_ entry: TileEntry) { files.write(Array(entry.json.text().utf8), key(entry.shape)) }

    /// Everything kept for this GPU.
    var entries: [TileEntry] {
        files.keys.compactMap { files.read($0).flatMap(TileEntry.init) }.filter { $0.machine == machine }
            .sorted { $0.shape < $1.shape }
    }

    /// A changed kernel is another one.
    private func key(_ shape: String) -> String {
        KernelCache.key([machine, shape] + KernelSources.text.sorted { $0.key < $1.key }.map(\.value))
    }
}

/// One file of the cache.
struct TileEntry: Equatable {
    var machine: String
    var shape: String
    var answers: [TileAnswer]

    init(machine: String, shape: String, answers: [TileAnswer]) {
        (self.machine, self.shape, self.answers) = (machine, shape, answers)
    }

    init?(_ bytes: [UInt8]) {
        guard let json = try? JSON(parsing: String(decoding: bytes, as: UTF8.self)),
            let machine = json["machine"]?.string, let shape = json["shape"]?.string, let list = json["tiles"]?.array
        else { return nil }
        let answers = list.compactMap(TileAnswer.init)
        guard answers.count == list.count else { return nil }
        self.init(machine: machine, shape: shape, answers: answers)
    }

    var json: JSON {
        ["machine": .string(machine), "shape": .string(shape), "tiles": .array(answers.map(\.json))]
    }
}

extension TileAnswer {
    fileprivate init?(_ json: JSON) {
        guard let kernel = json["kernel"]?.string.flatMap(KernelVariant.init(text:)),
            let tile = json["tile"]?.string.flatMap({ text in KernelVariant(text: kernel.file + " " + text) }),
            let microseconds = json["microseconds"]?.number, let usual = json["usual"]?.number
        else { return nil }
        self.init(kernel: kernel, tile: tile.defines, microseconds: microseconds, usualMicroseconds: usual)
    }

    fileprivate var json: JSON {
        [
            "kernel": .string(kernel.text), "tile": .string(tile.text), "microseconds": .number(microseconds),
            "usual": .number(usualMicroseconds),
        ]
    }

    /// "lora_project.cu GATHERS=1 WIDTH=2048 ...: BLOCKS=4, 110.3 us for 114.7"
    var text: String { "\(kernel.text): \(tile.text), \(fixed(microseconds, 1)) us for \(fixed(usualMicroseconds, 1))" }
}

extension KernelVariant {
    /// "copy.cu HALF=1"
    var text: String { ([file] + defines.map(\.text)).joined(separator: " ") }

    init?(text: String) {
        let words = text.split(separator: " ")
        let defines = words.dropFirst().compactMap { word -> KernelDefine? in
            let parts = word.split(separator: "=", omittingEmptySubsequences: false)
            return parts.count == 2 ? Int(parts[1]).map { KernelDefine(String(parts[0]), $0) } : nil
        }
        guard let file = words.first, defines.count == words.count - 1 else { return nil }
        self.init(String(file), defines)
    }
}

extension KernelDefine {
    fileprivate var text: String { "\(name)=\(value)" }
}

extension [KernelDefine] {
    /// "TILE_COLUMNS=128 STEP=64 STAGES=3"
    var text: String { map(\.text).joined(separator: " ") }
}
