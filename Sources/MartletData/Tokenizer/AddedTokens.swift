/// An entry of `added_tokens`: a text that is cut out of the input before anything else, and becomes one id.
struct AddedToken: Sendable {
    var id: Int32
    var text: String
    /// Match only where no word character stands next to it.
    var singleWord = false
    /// Also take the white space to the left / right.
    var stripsLeft = false
    var stripsRight = false
    /// Match in the normalized text, not in the raw one.
    var isNormalized = false
    /// Left out by decoding that skips special tokens.
    var isSpecial = false
}

/// Finds added tokens in a text: the leftmost, of those that start there the longest.
final class AddedTokenMatcher: @unchecked Sendable {
    // @unchecked: everything is written in init only.

    private let tokens: [AddedToken]
    /// Edges of a trie: (node, byte) -> node. Node 0 is the root.
    private let edges = PairTable(capacity: 64)
    /// By node: the token that ends there, or -1.
    private var ends: [Int32] = [-1]
    private var starts = [Bool](repeating: false, count: 256)
    private static let word = ScalarTable(UnicodeClasses.word.union(ScalarSet([0x200C...0x200D])))

    var isEmpty: Bool { tokens.isEmpty }

    /// `texts` are what the tokens look like in the text to search. Of two equal ones the last counts.
    init(_ tokens: [AddedToken], texts: [[UInt8]]) {
        self.tokens = tokens
        for (index, text) in texts.enumerated() where !text.isEmpty {
            var node: Int32 = 0
            for byte in text {
                var next = edges.find(node, Int32(byte)).result
                if next < 0 {
                    next = Int32(ends.count)
                    ends.append(-1)
                    edges.set(node, Int32(byte), rank: 0, result: next)
                }
                node = next
            }
            ends[Int(node)] = Int32(index)
            starts[Int(text[0])] = true
        }
    }

    /// Calls `body` with each part of the text in order: an added token's id, or -1 for a text between.
    func forEachPart(
        of text: UnsafePointer<UInt8>, count: Int, _ body: (_ low: Int, _ high: Int, _ id: Int32) -> Void
    ) {
        var done = 0
        var i = 0
        while let (low, high, index) = firstMatch(text, from: i, count: count) {
            i = high
            let token = tokens[index]
            var (start, end) = (low, high)
            if token.singleWord, touchesWord(text, low, high, count) { continue }
            if token.stripsLeft { start = max(done, WhiteSpace.start(of: text, before: low)) }
            if token.stripsRight { end = WhiteSpace.end(of: text, from: high, count: count) }
            if done < start { body(done, start, -1) }
            // White space that the token before took may leave nothing of this one.
            if start < end { body(start, end, token.id) }
            done = end
        }
        if done < count { body(done, count, -1) }
    }

    private func firstMatch(_ text: UnsafePointer<UInt8>, from: Int, count: Int) -> (Int, Int, Int)? {
        starts.withUnsafeBufferPointer { starts in
            var low = from
            while low < count {
                if starts[Int(text[low])] {
                    var node: Int32 = 0
                    var best: (Int, Int, Int)?
                    var i = low
                    while i < count {
                        node = edges.find(node, Int32(text[i])).result
                        if node < 0 { break }
                        i += 1
                        if ends[Int(node)] >= 0 { best = (low, i, Int(ends[Int(node)])) }
                    }
                    if let best { return best }
                }
                low += 1
            }
            return nil
        }
    }

    private func touchesWord(_ text: UnsafePointer<UInt8>, _ low: Int, _ high: Int, _ count: Int) -> Bool {
        if low > 0, AddedTokenMatcher.word.length(at: text + scalarStart(text, before: low)) > 0 { return true }
        return high < count && AddedTokenMatcher.word.length(at: text + high) > 0
    }
}
