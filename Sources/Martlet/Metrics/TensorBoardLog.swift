internal import MartletCore

/// TensorBoard's event file: TFRecords (little-endian length, masked CRC of the length, data, masked CRC of the data),
/// each holding one `Event` message of tensorflow/core/util/event.proto, encoded by hand.
final class TensorBoardLog {
    static let folderName = "tensorboard"
    private let file: AppendFile

    /// Starts a new event file; of a run that continues after `step`, one that tells TensorBoard to forget later steps.
    init(folder: String, continuingAfter step: Int) throws(MartletError) {
        let folder = FileSystem.join(folder, TensorBoardLog.folderName)
        if step == 0 { try FileSystem.remove(folder) }
        try FileSystem.makeFolder(folder)
        let time = wallClock()
        // TensorBoard reads the files of a folder in the order of their names: seconds first, then a serial number.
        let serial = try FileSystem.list(folder).count
        let name = "events.out.tfevents.\(Int(time)).martlet.\(serial)"
        file = try AppendFile(FileSystem.join(folder, name), truncating: true)
        try append(
            ProtoMessage { event in
                event.double(1, time)
                event.string(3, "brain.Event:2")
            })
        if step > 0 {
            // SessionLog { status = START }: what was logged at this step or later, before this event, is void.
            try append(
                ProtoMessage { event in
                    event.double(1, time)
                    event.integer(2, step + 1)
                    event.message(7) { $0.integer(1, 1) }
                })
        }
    }

    func append(step: Int, _ scalars: [(tag: String, value: Double)]) throws(MartletError) {
        try append(
            ProtoMessage { event in
                event.double(1, wallClock())
                event.integer(2, step)
                event.message(5) { summary in
                    for (tag, value) in scalars {
                        summary.message(1) { scalar in
                            scalar.string(1, tag)
                            scalar.float(2, Float(value))
                        }
                    }
                }
            })
    }

    private func append(_ event: ProtoMessage) throws(MartletError) { try file.append(TFRecord.frame(event.bytes)) }
}

package enum TFRecord {
    package static func frame(_ data: [UInt8]) -> [UInt8] {
        let length = littleEndian(UInt64(data.count))
        return length + littleEndian(CRC32C.masked(length)) + data + littleEndian(CRC32C.masked(data))
    }
}

/// A protocol buffer message under construction.
struct ProtoMessage {
    private(set) var bytes: [UInt8] = []

    init(_ build: (inout ProtoMessage) -> Void) { build(&self) }

    private mutating func varint(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(rest))
    }

    /// `wire`: 0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes.
    private mutating func key(_ field: Int, wire: UInt64) { varint(UInt64(field) << 3 | wire) }

    mutating func integer(_ field: Int, _ value: Int) {
        key(field, wire: 0)
        varint(UInt64(bitPattern: Int64(value)))
    }

    mutating func double(_ field: Int, _ value: Double) {
        key(field, wire: 1)
        bytes += littleEndian(value.bitPattern)
    }

    mutating func float(_ field: Int, _ value: Float) {
        key(field, wire: 5)
        bytes += littleEndian(value.bitPattern)
    }

    mutating func string(_ field: Int, _ value: String) { delimited(field, Array(value.utf8)) }

    mutating func message(_ field: Int, _ build: (inout ProtoMessage) -> Void) {
        delimited(field, ProtoMessage(build).bytes)
    }

    private mutating func delimited(_ field: Int, _ payload: [UInt8]) {
        key(field, wire: 2)
        varint(UInt64(payload.count))
        bytes += payload
    }
}

private func littleEndian(_ value: some FixedWidthInteger) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
}
