/// From byte strings to numbers, insert only: open addressing over an arena that holds the keys.
final class ByteTable {
    private struct Slot {
        var hash: UInt32
        /// `vacant` if the slot is free.
        var length: UInt32
        var offset: UInt32
        var value: Int32
    }
    private static let vacant = UInt32.max

    private var slots: UnsafeMutablePointer<Slot>
    private var mask: Int
    private(set) var count = 0
    private var arena: UnsafeMutablePointer<UInt8>
    private var arenaCapacity: Int
    private(set) var arenaCount = 0

    /// The most key bytes a table can hold.
    static let maximumArena = Int(UInt32.max) - 1

    init(capacity: Int) {
        var size = 16
        while size < capacity * 2 { size *= 2 }
        mask = size - 1
        slots = .allocate(capacity: size)
        arenaCapacity = max(64, capacity * 8)
        arena = .allocate(capacity: arenaCapacity)
        vacate()
    }

    deinit {
        slots.deallocate()
        arena.deallocate()
    }

    private func vacate() {
        slots.initialize(repeating: Slot(hash: 0, length: ByteTable.vacant, offset: 0, value: 0), count: mask + 1)
    }

    func removeAll() {
        vacate()
        count = 0
        arenaCount = 0
    }

    @inline(__always) static func hash(_ key: UnsafePointer<UInt8>, _ count: Int) -> UInt32 {
        var state: UInt64 = 0x9E37_79B9_7F4A_7C15 ^ UInt64(truncatingIfNeeded: count)
        let raw = UnsafeRawPointer(key)
        var i = 0
        while i + 8 <= count {
            state = mix(state ^ raw.loadUnaligned(fromByteOffset: i, as: UInt64.self))
            i += 8
        }
        if i + 4 <= count {
            state = mix(state ^ UInt64(raw.loadUnaligned(fromByteOffset: i, as: UInt32.self)))
            i += 4
        }
        var tail: UInt64 = 0
        while i < count {
            tail = tail << 8 | UInt64(key[i])
            i += 1
        }
        state = mix(state ^ tail)
        return UInt32(truncatingIfNeeded: state ^ state >> 32)
    }

    @inline(__always) private static func mix(_ value: UInt64) -> UInt64 {
        let product = value.multipliedFullWidth(by: 0xD6E8_FEB8_6659_FD93)
        return product.high ^ product.low
    }

    @inline(__always) func find(_ key: UnsafePointer<UInt8>, _ length: Int, hash: UInt32) -> Int32? {
        var i = Int(hash) & mask
        while true {
            let slot = slots[i]
            if slot.length == ByteTable.vacant { return nil }
            if slot.hash == hash, Int(slot.length) == length, equal(arena + Int(slot.offset), key, length) {
                return slot.value
            }
            i = (i + 1) & mask
        }
    }

    @inline(__always) private func equal(_ a: UnsafePointer<UInt8>, _ b: UnsafePointer<UInt8>, _ length: Int) -> Bool {
        let x = UnsafeRawPointer(a), y = UnsafeRawPointer(b)
        var i = 0
        while i + 8 <= length {
            if x.loadUnaligned(fromByteOffset: i, as: UInt64.self)
                != y.loadUnaligned(fromByteOffset: i, as: UInt64.self)
            {
                return false
            }
            i += 8
        }
        while i < length {
            if a[i] != b[i] { return false }
            i += 1
        }
        return true
    }

    func find(_ key: UnsafeBufferPointer<UInt8>) -> Int32? {
        guard let start = key.baseAddress else { return nil }
        return find(start, key.count, hash: ByteTable.hash(start, key.count))
    }

    func find(_ key: some Collection<UInt8>) -> Int32? {
        Array(key).withUnsafeBufferPointer { find($0) }
    }

    /// Adds a key that is not there yet. The arena must not grow beyond `maximumArena`.
    func insert(_ key: UnsafePointer<UInt8>, _ length: Int, hash: UInt32, _ value: Int32) {
        if (count + 1) * 2 > mask { grow() }
        if arenaCount + length > arenaCapacity { growArena(length) }
        (arena + arenaCount).update(from: key, count: length)
        place(Slot(hash: hash, length: UInt32(length), offset: UInt32(arenaCount), value: value))
        arenaCount += length
        count += 1
    }

    /// Adds a key; false (and nothing done) if it is empty or there already.
    func insert(_ key: [UInt8], _ value: Int32) -> Bool {
        key.withUnsafeBufferPointer { key in
            guard let start = key.baseAddress, !key.isEmpty else { return false }
            let hash = ByteTable.hash(start, key.count)
            guard find(start, key.count, hash: hash) == nil else { return false }
            insert(start, key.count, hash: hash, value)
            return true
        }
    }

    private func place(_ slot: Slot) {
        var i = Int(slot.hash) & mask
        while slots[i].length != ByteTable.vacant { i = (i + 1) & mask }
        slots[i] = slot
    }

    private func grow() {
        let old = slots, oldCount = mask + 1
        mask = oldCount * 2 - 1
        slots = .allocate(capacity: mask + 1)
        vacate()
        for i in 0..<oldCount where old[i].length != ByteTable.vacant { place(old[i]) }
        old.deallocate()
    }

    private func growArena(_ length: Int) {
        arenaCapacity = max(arenaCapacity * 2, arenaCount + length)
        let larger = UnsafeMutablePointer<UInt8>.allocate(capacity: arenaCapacity)
        larger.update(from: arena, count: arenaCount)
        arena.deallocate()
        arena = larger
    }
}

/// From pairs of numbers to a pair of numbers, insert only: the merges of BPE, (left, right) to (rank, result).
final class PairTable {
    private struct Slot {
        var key: UInt64
        var rank: Int32
        var result: Int32
    }
    private static let vacant = UInt64.max

    private var slots: UnsafeMutablePointer<Slot>
    private var mask: Int
    private(set) var count = 0

    init(capacity: Int) {
        var size = 16
        while size < capacity * 2 { size *= 2 }
        mask = size - 1
        slots = .allocate(capacity: size)
        slots.initialize(repeating: Slot(key: PairTable.vacant, rank: 0, result: 0), count: size)
    }

    deinit { slots.deallocate() }

    @inline(__always) private func home(_ key: UInt64) -> Int {
        Int(truncatingIfNeeded: (key &* 0x9E37_79B9_7F4A_7C15) >> 24) & mask
    }

    @inline(__always) static func key(_ left: Int32, _ right: Int32) -> UInt64 {
        UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right))
    }

    /// The rank and the result of a pair; rank `Int32.max` if it is not in the table.
    @inline(__always) func find(_ left: Int32, _ right: Int32) -> (rank: Int32, result: Int32) {
        let key = PairTable.key(left, right)
        var i = home(key)
        while true {
            let slot = slots[i]
            if slot.key == key { return (slot.rank, slot.result) }
            if slot.key == PairTable.vacant { return (Int32.max, -1) }
            i = (i + 1) & mask
        }
    }

    /// Sets the entry of a pair of numbers that are not negative.
    func set(_ left: Int32, _ right: Int32, rank: Int32, result: Int32) {
        if (count + 1) * 2 > mask { grow() }
        place(Slot(key: PairTable.key(left, right), rank: rank, result: result))
    }

    private func place(_ slot: Slot) {
        var i = home(slot.key)
        while slots[i].key != PairTable.vacant, slots[i].key != slot.key { i = (i + 1) & mask }
        if slots[i].key == PairTable.vacant { count += 1 }
        slots[i] = slot
    }

    private func grow() {
        let old = slots, oldCount = mask + 1
        mask = oldCount * 2 - 1
        slots = .allocate(capacity: mask + 1)
        slots.initialize(repeating: Slot(key: PairTable.vacant, rank: 0, result: 0), count: mask + 1)
        count = 0
        for i in 0..<oldCount where old[i].key != PairTable.vacant { place(old[i]) }
        old.deallocate()
    }
}
