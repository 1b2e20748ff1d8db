import CMartletSystem
import MartletCore

extension ByteFile {
    /// Whether the file starts like gzip (RFC 1952, bytes 1F 8B).
    func isGzip() throws(MartletError) -> Bool {
        guard size >= 2 else { return false }
        return try bytes(at: 0, count: 2) == [0x1F, 0x8B]
    }

    /// A temporary, decompressed copy: gzip cannot be read from the middle. It needs disk space for the whole text.
    func decompressed() throws(MartletError) -> ByteFile {
        let spool = try SpoolWriter(name: name)
        let inflater = try Inflater(name: name)
        try forEachChunk { (chunk) throws(MartletError) in try inflater.inflate(chunk, to: spool) }
        try inflater.finish()
        return try spool.finish()
    }
}

/// The state of a decompression over chunks: a gzip file is one or more members, then perhaps zero padding.
private final class Inflater {
    enum Place { case inMember, betweenMembers, inPadding }

    let name: String
    var place = Place.betweenMembers
    /// On the heap: zlib refuses a stream that has moved.
    let stream = UnsafeMutablePointer<z_stream>.allocate(capacity: 1)
    let output = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 18, alignment: 16)

    init(name: String) throws(MartletError) {
        self.name = name
        stream.initialize(to: z_stream())
        // 15 bits of window, and 16 for "gzip header wanted".
        guard inflateInit2_(stream, 15 + 16, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK else {
            throw MartletError("cannot start zlib", in: name, fix: "free some memory and start again")
        }
    }

    deinit {
        inflateEnd(stream)
        stream.deallocate()
        output.deallocate()
    }

    func inflate(_ chunk: UnsafeRawBufferPointer, to spool: SpoolWriter) throws(MartletError) {
        stream.pointee.next_in = UnsafeMutablePointer(mutating: chunk.bindMemory(to: UInt8.self).baseAddress)
        stream.pointee.avail_in = UInt32(chunk.count)
        while stream.pointee.avail_in > 0 {
            if place == .inMember { try inflateMember(to: spool) } else { try startMember() }
        }
    }

    private func startMember() throws(MartletError) {
        if stream.pointee.next_in[0] == 0 {
            place = .inPadding
            stream.pointee.next_in += 1
            stream.pointee.avail_in -= 1
        } else if place == .inPadding {
            throw damaged("there is something else after the compressed data")
        } else {
            inflateReset(stream)
            place = .inMember
        }
    }

    private func inflateMember(to spool: SpoolWriter) throws(MartletError) {
        repeat {
            stream.pointee.next_out = output.bindMemory(to: UInt8.self).baseAddress
            stream.pointee.avail_out = UInt32(output.count)
            let status = CMartletSystem.inflate(stream, Z_NO_FLUSH)
            guard status == Z_OK || status == Z_STREAM_END || status == Z_BUF_ERROR else {
                throw damaged(stream.pointee.msg.map { String(cString: $0) } ?? "zlib reports error \(status)")
            }
            try spool.append(
                UnsafeRawBufferPointer(rebasing: output[..<(output.count - Int(stream.pointee.avail_out))]))
            if status == Z_STREAM_END {
                place = .betweenMembers
                return
            }
        } while stream.pointee.avail_in > 0 || stream.pointee.avail_out == 0
    }

    func finish() throws(MartletError) {
        if place == .inMember { throw damaged("it ends in the middle: the file is truncated") }
    }

    func damaged(_ reason: String) -> MartletError {
        MartletError(
            "the gzip file is damaged", in: name, because: reason,
            fix: "copy or download the file again; `gzip -t \(name)` tests it")
    }
}
