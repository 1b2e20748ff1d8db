internal import MartletCore

#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// Compiled kernels, or what tuning found, on disk, so that only a machine's first run compiles and tunes. An entry is written
/// beside its place and renamed, and carries its length and a checksum: a half-written or damaged one is made again.
struct KernelCache: Sendable {
    let folder: String
    var suffix = "cubin"

    static let standard = KernelCache(folder: "\(root)/kernels")
    static let tiles = KernelCache(folder: "\(root)/tiles", suffix: "tiles")

    /// `MARTLET_CACHE`, else `$XDG_CACHE_HOME/martlet`, else `~/.cache/martlet`.
    private static let root: String = {
        func variable(_ name: String) -> String? {
            getenv(name).map { String(cString: $0) }.flatMap { $0.isEmpty ? nil : $0 }
        }
        return variable("MARTLET_CACHE") ?? variable("XDG_CACHE_HOME").map { "\($0)/martlet" }
            ?? "\(variable("HOME") ?? "/tmp")/.cache/martlet"
    }()

    /// The cubin of `variant`: from here, else compiled and kept here.
    func image(
        of variant: KernelVariant, for architecture: Architecture, by compiler: Compiler
    ) throws(MartletError) -> [UInt8] {
        let key = KernelCache.key(
            [KernelSources.text[variant.file] ?? "", architecture.name, compiler.version, variant.file]
                + variant.defines.map { "\($0.name)=\($0.value)" } + KernelSources.headers.map(\.text))
        if let image = read(key) { return image }
        let image = try compiler.compile(variant, for: architecture)
        write(image, key)
        return image
    }

    /// The name of the entry that everything in `parts` leads to.
    static func key(_ parts: [String]) -> String {
        let bytes = Array(parts.joined(separator: "\u{0}").utf8)
        return hexadecimal(fnv(bytes, 0xcbf2_9ce4_8422_2325))
            + hexadecimal(fnv(bytes.reversed(), 0x9ae1_6a3b_2f90_404f))
    }

    func read(_ key: String) -> [UInt8]? {
        guard let bytes = try? FileSystem.read(path(key)), bytes.count > KernelCache.headerSize else { return nil }
        let image = Array(bytes[KernelCache.headerSize...])
        return Array(bytes[..<KernelCache.headerSize]) == KernelCache.header(image) ? image : nil
    }

    /// A cache that cannot be written is only slower.
    func write(_ image: [UInt8], _ key: String) {
        try? FileSystem.makeFolder(folder)
        try? AtomicFile.write(KernelCache.header(image) + image, to: path(key))
    }

    /// Of all entries.
    var keys: [String] {
        ((try? FileSystem.list(folder)) ?? []).filter { $0.hasSuffix("." + suffix) }.map {
            String($0.dropLast(suffix.count + 1))
        }
    }

    private func path(_ key: String) -> String { "\(folder)/\(key).\(suffix)" }

    private static let headerSize = 24
    private static func header(_ image: [UInt8]) -> [UInt8] {
        let numbers = [0x4B54_524D_0000_0001, UInt64(image.count), fnv(image, 0xcbf2_9ce4_8422_2325)]
        return numbers.flatMap { number in (0..<8).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) } }
    }

    /// FNV-1a (Fowler, Noll, Vo).
    private static func fnv(_ bytes: some Sequence<UInt8>, _ seed: UInt64) -> UInt64 {
        bytes.reduce(seed) { ($0 ^ UInt64($1)) &* 0x0000_0100_0000_01b3 }
    }

    private static func hexadecimal(_ number: UInt64) -> String {
        let digits = String(number, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
