/// The byte alphabet of byte-level BPE (GPT-2): each byte is written as one printable character, so that a vocabulary
/// can be stored as text. Printable Latin-1 stands for itself, the other 68 bytes are U+0100 and up, in order.
enum ByteAlphabet {
    /// By byte: its character.
    static let scalars: [UInt32] = {
        var scalars: [UInt32] = []
        var next: UInt32 = 0x100
        for byte: UInt32 in 0...255 {
            let isPrintable = (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || byte >= 0xAE
            scalars.append(isPrintable ? byte : next)
            if !isPrintable { next += 1 }
        }
        return scalars
    }()

    /// By character below U+0144: its byte, or -1.
    private static let bytes: [Int16] = {
        var bytes = [Int16](repeating: -1, count: 0x144)
        for (byte, scalar) in scalars.enumerated() { bytes[Int(scalar)] = Int16(byte) }
        return bytes
    }()

    /// By byte: its character as UTF-8.
    static let texts: [[UInt8]] = scalars.map(utf8)

    static func byte(of scalar: UInt32) -> UInt8? {
        guard scalar < 0x144 else { return nil }
        return UInt8(exactly: bytes[Int(scalar)])
    }

    /// The bytes that a token stands for; nil if one of its characters is not of the alphabet. `token` is UTF-8.
    static func bytes(of token: UnsafeBufferPointer<UInt8>) -> [UInt8]? {
        guard let start = token.baseAddress else { return [] }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(token.count)
        var i = 0
        while i < token.count {
            let (scalar, length) = decodeScalar(start + i)
            guard let byte = byte(of: scalar) else { return nil }
            bytes.append(byte)
            i += length
        }
        return bytes
    }
}
