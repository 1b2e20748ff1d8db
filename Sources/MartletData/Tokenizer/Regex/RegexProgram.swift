import MartletCore

/// A regular expression compiled for the backtracking machine of `RegexMachine`.
final class RegexProgram: @unchecked Sendable {
    // @unchecked: everything is written in init only.

    enum Operation: UInt8 {
        /// Succeed at the current position.
        case match
        /// Consume the byte `a`.
        case byte
        /// Consume a scalar of set `a`.
        case set
        /// Consume between `b` and `c` scalars of set `a`, as many as possible; give them back one by one.
        case greedySet
        /// The same, as few as possible.
        case lazySet
        /// The same, as many as possible, and give none back.
        case possessiveSet
        /// If the next byte is not in byte set `b` (-1: any), go to `a`; else go on and remember `a` as the other way.
        case choice
        /// Go to `a`; remember the next instruction as the other way.
        case lazyChoice
        /// Go to `a`.
        case jump
        /// Remember the position in slot `a`.
        case mark
        /// Go to `b` if nothing was consumed since `mark`.
        case breakIfStill
        /// Assertion `a`.
        case assert
        /// Look ahead with the program that follows; go on at `a`. `b`: 1 if it must not match.
        case lookAhead
        /// Look behind, at starts between `c` and -`d` bytes back (`d` < 0: any). `b`: 1 if it must not match.
        case lookBehind
        /// Match the program that follows, once; go on at `a`.
        case atomic
    }

    struct Instruction {
        var operation: Operation
        var a: Int32 = 0, b: Int32 = 0, c: Int32 = 0, d: Int32 = 0
    }

    let pattern: String
    let code: UnsafeMutablePointer<Instruction>
    /// 256 flags a byte set.
    let byteSets: UnsafeMutablePointer<Bool>
    let tables: UnsafeMutablePointer<ScalarTable>
    private let tableCount: Int
    let slotCount: Int
    /// The byte set a match can start with; nil if it may be empty.
    let firstBytes: UnsafeMutablePointer<Bool>?

    static let maximumSize = 50_000
    static let maximumSetCount = 500

    /// Compiles a pattern in Oniguruma's syntax.
    convenience init(_ pattern: String) throws(MartletError) {
        try self.init(try RegexParser.parse(pattern), pattern: pattern)
    }

    init(_ node: RegexNode, pattern: String) throws(MartletError) {
        var compiler = Compiler()
        let first = node.first
        let start = compiler.byteSet(first.bytes)
        let fits = compiler.emit(node)
        compiler.code.append(Instruction(operation: .match))
        self.pattern = pattern
        code = .allocate(capacity: compiler.code.count)
        code.initialize(from: compiler.code, count: compiler.code.count)
        byteSets = .allocate(capacity: compiler.flags.count)
        byteSets.initialize(from: compiler.flags, count: compiler.flags.count)
        tableCount = compiler.sets.count
        tables = .allocate(capacity: tableCount)
        tables.initialize(from: compiler.sets.map(ScalarTable.init), count: tableCount)
        slotCount = compiler.slotCount
        firstBytes = first.canBeEmpty ? nil : byteSets + Int(start) * 256
        guard fits else {
            throw MartletError(
                "the regular expression '\(pattern)' is too large",
                because: "it has more than \(RegexProgram.maximumSize) instructions, repeats multiplied, or more than "
                    + "\(RegexProgram.maximumSetCount) classes",
                fix: "use the pattern of the published model, or one with lower repeat counts")
        }
    }

    deinit {
        code.deallocate()
        byteSets.deallocate()
        for i in 0..<tableCount { tables[i].deallocate() }
        tables.deallocate()
    }

    private struct Compiler {
        var code: [Instruction] = []
        var flags: [Bool] = []
        var sets: [ScalarSet] = []
        var slotCount = 0

        mutating func byteSet(_ set: ByteSet) -> Int32 {
            flags += (0...255).map { set.contains(UInt8($0)) }
            return Int32(flags.count / 256 - 1)
        }

        mutating func table(_ set: ScalarSet) -> Int32 {
            if let known = sets.firstIndex(of: set) { return Int32(known) }
            sets.append(set)
            return Int32(sets.count - 1)
        }

        var here: Int32 { Int32(code.count) }

        mutating func add(_ operation: Operation, _ a: Int32 = 0, _ b: Int32 = 0, _ c: Int32 = 0, _ d: Int32 = 0) -> Int
        {
            code.append(Instruction(operation: operation, a: a, b: b, c: c, d: d))
            return code.count - 1
        }

        /// Appends the instructions of a node; false once there are too many.
        mutating func emit(_ node: RegexNode) -> Bool {
            guard code.count < RegexProgram.maximumSize, sets.count <= RegexProgram.maximumSetCount else {
                return false
            }
            switch node {
            case .empty: return true
            case .set(let set):
                guard let scalar = set.single else { _ = add(.set, table(set)); return true }
                for byte in utf8(scalar) { _ = add(.byte, Int32(byte)) }
                return true
            case .sequence(let nodes):
                return nodes.allSatisfy { emit($0) }
            case .alternation(let nodes): return alternation(nodes)
            case .assertion(let assertion): _ = add(.assert, assertion.code)
            case .atomic(let inner): return nested(inner, add(.atomic))
            case .look(let inner, let behind, let negative):
                let width = inner.width
                let furthest = width.most.flatMap { $0 < Int32.max ? Int32($0) : nil } ?? -1
                let head =
                    behind
                    ? add(.lookBehind, 0, negative ? 1 : 0, Int32(min(width.least, Int(Int32.max))), furthest)
                    : add(.lookAhead, 0, negative ? 1 : 0)
                return nested(inner, head)
            case .repetition(let inner, let least, let most, let greed):
                return repetition(inner, least, most, greed)
            }
            return true
        }

        private mutating func nested(_ node: RegexNode, _ head: Int) -> Bool {
            let fits = emit(node)
            _ = add(.match)
            code[head].a = here
            return fits
        }

        private mutating func alternation(_ nodes: [RegexNode]) -> Bool {
            var jumps: [Int] = []
            for (k, node) in nodes.enumerated() {
                guard k < nodes.count - 1 else { if !emit(node) { return false }; break }
                let head = choice(before: node)
                guard emit(node) else { return false }
                jumps.append(add(.jump))
                code[head].a = here
            }
            for jump in jumps { code[jump].a = here }
            return true
        }

        private mutating func choice(before node: RegexNode) -> Int {
            let first = node.first
            return add(.choice, 0, first.canBeEmpty ? -1 : byteSet(first.bytes))
        }

        private mutating func repetition(
            _ node: RegexNode, _ least: Int, _ most: Int?, _ greed: RegexNode.Greed
        ) -> Bool {
            if case .set(let set) = node {
                let operation: Operation =
                    switch greed {
                    case .greedy: .greedySet;
                    case .lazy: .lazySet;
                    case .possessive: .possessiveSet
                    }
                _ = add(operation, table(set), Int32(least), most.map { Int32($0) } ?? Int32.max)
                return true
            }
            if greed == .possessive {
                return nested(.repetition(node, least: least, most: most, .greedy), add(.atomic))
            }
            for _ in 0..<least { guard emit(node) else { return false } }
            guard let most else { return loop(node, greed) }
            var heads: [Int] = []
            for _ in least..<most {
                heads.append(greed == .lazy ? lazyChoice() : choice(before: node))
                guard emit(node) else { return false }
            }
            for head in heads { code[head].a = here }
            return true
        }

        /// `lazyChoice` jumps over the body and remembers the body.
        private mutating func lazyChoice() -> Int { add(.lazyChoice) }

        private mutating func loop(_ node: RegexNode, _ greed: RegexNode.Greed) -> Bool {
            let start = here
            let head = greed == .lazy ? lazyChoice() : choice(before: node)
            let slot = Int32(slotCount)
            let canStandStill = node.first.canBeEmpty
            if canStandStill {
                slotCount += 1
                _ = add(.mark, slot)
            }
            guard emit(node) else { return false }
            let still = canStandStill ? add(.breakIfStill, slot) : nil
            _ = add(.jump, start)
            code[head].a = here
            if let still { code[still].b = here }
            return true
        }
    }
}

extension RegexNode.Assertion {
    /// The number of the assertion in a program; the machine switches over the same list.
    fileprivate var code: Int32 { Int32(RegexNode.Assertion.order.firstIndex(of: self) ?? 0) }

    static let order: [RegexNode.Assertion] = [
        .lineStart, .lineEnd, .textStart, .textEnd, .textEndOrNewline, .wordBoundary, .noWordBoundary, .searchStart,
    ]
}
