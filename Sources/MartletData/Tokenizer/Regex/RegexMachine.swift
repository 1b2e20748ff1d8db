/// The state of a search, reused between searches: a backtracking stack and a budget of steps.
///
/// A search costs a step an instruction and a step a scalar. When the budget is gone, `isExhausted` is set and
/// nothing matches any more; so no pattern can hang the caller, who looks at `isExhausted` when done.
final class RegexMachine {
    private struct Frame {
        var position: Int
        /// Give back down to here (`greedySet`), or the former content of a slot.
        var limit: Int
        var pc: Int32
        /// 0: go to `pc`. 1: give back one scalar first. 2: take one more first. 3: restore a slot, go on backtracking.
        var kind: Int32
    }

    private var stack: UnsafeMutablePointer<Frame>
    private var capacity = 256
    private var depth = 0
    private var slots: UnsafeMutablePointer<Int>
    private var slotCapacity = 16
    private static let maximumDepth = 1 << 24

    var budget = 0
    private(set) var isExhausted = false

    // The text searched now.
    private var text: UnsafePointer<UInt8>
    private var end = 0
    private var searchStart = 0
    private let nothing = UnsafeMutablePointer<UInt8>.allocate(capacity: 1)

    init() {
        stack = .allocate(capacity: capacity)
        slots = .allocate(capacity: slotCapacity)
        slots.initialize(repeating: -1, count: slotCapacity)
        text = UnsafePointer(nothing)
    }

    deinit {
        stack.deallocate()
        slots.deallocate()
        nothing.deallocate()
    }

    /// Starts anew with the steps that a text of so many bytes may take: far more than any sane pattern needs.
    func refill(forText byteCount: Int) {
        budget = 1_000_000 + 1_000 * byteCount
        isExhausted = false
    }

    /// Takes steps for work done elsewhere; false once there are none left.
    func spend(_ steps: Int) -> Bool {
        budget -= steps
        if budget < 0 { exhaust() }
        return !isExhausted
    }

    /// The first match in `text[from..<end]`; nil if there is none, or the budget is gone. `text` is valid UTF-8 and
    /// what stands before `from` counts for assertions that look behind.
    func firstMatch(
        of program: RegexProgram, in text: UnsafePointer<UInt8>, count: Int, from: Int
    ) -> (start: Int, end: Int)? {
        self.text = text
        end = count
        searchStart = from
        if program.slotCount > slotCapacity { growSlots(program.slotCount) }
        var start = from
        while true {
            if let first = program.firstBytes {
                while start < count, !first[Int(text[start])] { start += 1 }
                if start >= count { return nil }
            }
            let stop = run(program, 0, start)
            if stop >= 0 { return (start, stop) }
            if isExhausted || start >= count { return nil }
            start += scalarLength(text[start])
        }
    }

    private func growSlots(_ count: Int) {
        slots.deallocate()
        slotCapacity = count
        slots = .allocate(capacity: count)
        slots.initialize(repeating: -1, count: count)
    }

    @inline(__always) private func push(_ pc: Int32, _ position: Int, limit: Int = 0, kind: Int32 = 0) {
        if depth == capacity { growStack() }
        stack[depth] = Frame(position: position, limit: limit, pc: pc, kind: kind)
        depth += 1
    }

    @inline(never) private func growStack() {
        guard capacity < RegexMachine.maximumDepth else {
            exhaust()
            depth = capacity / 2
            return
        }
        let larger = UnsafeMutablePointer<Frame>.allocate(capacity: capacity * 2)
        larger.moveInitialize(from: stack, count: depth)
        stack.deallocate()
        stack = larger
        capacity *= 2
    }

    private func exhaust() {
        isExhausted = true
        budget = 0
    }

    /// Runs from instruction `start` at `from`; the end of the match, or -1. Recursive for looking around only, as
    /// deep as the pattern is nested.
    private func run(_ program: RegexProgram, _ start: Int32, _ from: Int, mustEndAt wanted: Int = -1) -> Int {
        let base = depth
        defer { depth = base }
        let code = program.code
        let text = text, end = end
        var pc = start
        var position = from
        while true {
            budget -= 1
            if budget < 0 {
                exhaust()
                return -1
            }
            let instruction = code[Int(pc)]
            var succeeded = false
            switch instruction.operation {
            case .match:
                if wanted < 0 || position == wanted { return position }
            case .byte:
                if position < end, text[position] == UInt8(truncatingIfNeeded: instruction.a) {
                    position += 1
                    succeeded = true
                }
            case .set:
                if position < end {
                    let length = program.tables[Int(instruction.a)].length(at: text + position)
                    position += length
                    succeeded = length > 0
                }
            case .greedySet, .possessiveSet:
                succeeded = takeMany(program, instruction, pc, &position)
            case .lazySet:
                succeeded = takeFew(program, instruction, pc, &position)
            case .choice:
                if instruction.b >= 0,
                    position == end || !program.byteSets[Int(instruction.b) &* 256 &+ Int(text[position])]
                {
                    pc = instruction.a
                    continue
                }
                push(instruction.a, position)
                succeeded = true
            case .lazyChoice:
                push(pc + 1, position)
                pc = instruction.a
                continue
            case .jump:
                pc = instruction.a
                continue
            case .mark:
                push(instruction.a, 0, limit: slots[Int(instruction.a)], kind: 3)
                slots[Int(instruction.a)] = position
                succeeded = true
            case .breakIfStill:
                if slots[Int(instruction.a)] == position {
                    pc = instruction.b
                    continue
                }
                succeeded = true
            case .assert:
                succeeded = holds(instruction.a, position)
            case .lookAhead:
                let found = run(program, pc + 1, position) >= 0
                if isExhausted { return -1 }
                if found == (instruction.b == 0) {
                    pc = instruction.a
                    continue
                }
            case .lookBehind:
                let found = looksBehind(program, instruction, pc + 1, position)
                if isExhausted { return -1 }
                if found == (instruction.b == 0) {
                    pc = instruction.a
                    continue
                }
            case .atomic:
                let stop = run(program, pc + 1, position)
                if isExhausted { return -1 }
                if stop >= 0 {
                    position = stop
                    pc = instruction.a
                    continue
                }
            }
            if succeeded {
                pc += 1
            } else if !backtrack(program, base, &pc, &position) {
                return -1
            }
        }
    }

    /// Goes back to the last choice above `base`; false if there is none.
    @inline(__always) private func backtrack(
        _ program: RegexProgram, _ base: Int, _ pc: inout Int32, _ position: inout Int
    ) -> Bool {
        while depth > base {
            let top = depth - 1
            let frame = stack[top]
            switch frame.kind {
            case 0:
                depth = top
                pc = frame.pc
                position = frame.position
                return true
            case 1:
                position = previous(frame.position)
                if position > frame.limit { stack[top].position = position } else { depth = top }
                pc = frame.pc
                return true
            case 2:
                let instruction = program.code[Int(frame.pc)]
                let length =
                    frame.position < end
                    ? program.tables[Int(instruction.a)].length(at: text + frame.position) : 0
                depth = top
                if length == 0 { continue }
                position = frame.position + length
                if frame.limit > 1 { push(frame.pc, position, limit: frame.limit - 1, kind: 2) }
                pc = frame.pc + 1
                return true
            default:
                slots[Int(frame.pc)] = frame.limit
                depth = top
            }
        }
        return false
    }

    @inline(__always) private func previous(_ position: Int) -> Int {
        var position = position - 1
        while position > 0, text[position] & 0xC0 == 0x80 { position -= 1 }
        return position
    }

    @inline(__always) private func takeMany(
        _ program: RegexProgram, _ instruction: RegexProgram.Instruction, _ pc: Int32, _ position: inout Int
    ) -> Bool {
        let table = program.tables[Int(instruction.a)]
        let start = position
        let text = text, end = end
        let least = Int(instruction.b), most = Int(instruction.c)
        var count = 0
        var floor = position
        var at = position
        if most == Int32.max, least <= 1 {
            while at < end {
                let length = table.length(at: text + at)
                if length == 0 { break }
                at += length
            }
            if least == 1 {
                if at == start { return false }
                floor = start + scalarLength(text[start])
            }
            budget -= at - start
        } else {
            while at < end, count < most {
                let length = table.length(at: text + at)
                if length == 0 { break }
                at += length
                count += 1
                if count == least { floor = at }
            }
            budget -= count
            if count < least { return false }
        }
        position = at
        if at > floor, instruction.operation == .greedySet { push(pc + 1, at, limit: floor, kind: 1) }
        return true
    }

    private func takeFew(
        _ program: RegexProgram, _ instruction: RegexProgram.Instruction, _ pc: Int32, _ position: inout Int
    ) -> Bool {
        let table = program.tables[Int(instruction.a)]
        for _ in 0..<Int(instruction.b) {
            let length = position < end ? table.length(at: text + position) : 0
            if length == 0 { return false }
            position += length
        }
        budget -= Int(instruction.b)
        let more = Int(instruction.c) - Int(instruction.b)
        if more > 0 { push(pc, position, limit: more, kind: 2) }
        return true
    }

    private func looksBehind(
        _ program: RegexProgram, _ instruction: RegexProgram.Instruction, _ pc: Int32, _ position: Int
    ) -> Bool {
        var start = position
        while true {
            let width = position - start
            if instruction.d >= 0, width > Int(instruction.d) { return false }
            if width >= Int(instruction.c), run(program, pc, start, mustEndAt: position) >= 0 { return true }
            budget -= 1
            if isExhausted || start == 0 { return false }
            start = previous(start)
        }
    }

    /// The order is that of `RegexNode.Assertion.order`.
    private func holds(_ assertion: Int32, _ position: Int) -> Bool {
        switch assertion {
        case 0: position == 0 || (text[position - 1] == 0x0A && position < end)
        case 1: position == end || text[position] == 0x0A
        case 2: position == 0
        case 3: position == end
        case 4: position == end || (position == end - 1 && text[position] == 0x0A)
        case 5: isWord(before: position) != isWord(at: position)
        case 6: isWord(before: position) == isWord(at: position)
        default: position == searchStart
        }
    }

    private static let word = ScalarTable(UnicodeClasses.wideWord)

    private func isWord(at position: Int) -> Bool {
        position < end && RegexMachine.word.length(at: text + position) > 0
    }

    private func isWord(before position: Int) -> Bool {
        position > 0 && isWord(at: previous(position))
    }
}
