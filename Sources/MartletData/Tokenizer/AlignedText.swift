/// For each byte of a rewritten text, the bytes of the original text it stands for.
struct Alignment {
    private(set) var starts: [Int] = []
    private(set) var ends: [Int] = []

    mutating func append(_ range: Range<Int>) {
        starts.append(range.lowerBound)
        ends.append(range.upperBound)
    }

    /// The bytes of the original that `low..<high` of the rewritten text stands for.
    func origin(_ low: Int, _ high: Int) -> Range<Int> {
        guard low < high, high <= ends.count else {
            let edge = low < starts.count ? starts[low] : ends.last ?? 0
            return edge..<edge
        }
        return starts[low]..<max(starts[low], ends[high - 1])
    }
}

/// A text as one rewriting step leaves it, with (if asked for) its alignment to the text before that step.
struct AlignedText {
    private(set) var bytes: [UInt8] = []
    private(set) var alignment: Alignment?

    init(tracks: Bool) { alignment = tracks ? Alignment() : nil }

    /// Appends bytes of the source as they are; `range` says where they are in it.
    mutating func copy(_ source: UnsafePointer<UInt8>, _ range: Range<Int>) {
        bytes.append(contentsOf: UnsafeBufferPointer(start: source + range.lowerBound, count: range.count))
        if alignment != nil {
            for i in range { alignment?.append(i..<i + 1) }
        }
    }

    /// Appends new bytes that stand for all of `range` of the source.
    mutating func append(_ new: some Sequence<UInt8>, for range: Range<Int>) {
        let count = bytes.count
        bytes.append(contentsOf: new)
        if alignment != nil {
            for _ in count..<bytes.count { alignment?.append(range) }
        }
    }

    /// This text, aligned to the source of the step before.
    func following(_ first: AlignedText) -> AlignedText {
        var result = self
        if let own = alignment, let before = first.alignment { result.alignment = before.followed(by: own) }
        return result
    }
}

extension Alignment {
    /// The alignment of a text that was rewritten twice: `self` is the first step.
    func followed(by second: Alignment) -> Alignment {
        var result = Alignment()
        for i in second.starts.indices { result.append(origin(second.starts[i], second.ends[i])) }
        return result
    }

    /// The alignment when the source itself begins at `base` of the original.
    func shifted(by base: Int) -> Alignment {
        var result = self
        for i in starts.indices {
            result.starts[i] += base
            result.ends[i] += base
        }
        return result
    }

    /// The alignment of a part of the text.
    func part(_ low: Int, _ high: Int) -> Alignment {
        var result = Alignment()
        result.starts = Array(starts[low..<high])
        result.ends = Array(ends[low..<high])
        return result
    }
}
