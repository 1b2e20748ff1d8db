internal import MartletCore

/// A conversation as text, and which parts of it came from which message.
package struct Rendering: Sendable {
    package let text: String
    /// The UTF-8 byte ranges written inside `{% generation %}` blocks.
    package let generationSpans: [Range<Int>]
    /// The UTF-8 byte ranges written while a loop over the messages was at a message, in the order of the text. They
    /// do not overlap, and text written outside such loops is in none of them.
    package let messageSpans: [(message: Int, range: Range<Int>)]

    /// The messages as the template saw them.
    let messages: [JSONObject]
    /// Whether the template marks the assistant's text itself.
    let hasGenerationBlocks: Bool
    let trace: MessageTrace

    init(text: String, messages: [JSONObject], trace: MessageTrace, hasGenerationBlocks: Bool) {
        self.text = text
        self.messages = messages
        self.trace = trace
        self.hasGenerationBlocks = hasGenerationBlocks
        generationSpans = trace.generationSpans
        messageSpans = trace.segments.map { ($0.message, $0.range) }
    }
}

/// Notes, during a rendering, which message the text belongs to.
struct MessageTrace: Sendable {
    struct Segment: Sendable {
        let message: Int
        /// Which of the template's runs over the messages wrote it.
        let pass: Int
        var range: Range<Int>
    }
    private(set) var segments: [Segment] = []
    var generationSpans: [Range<Int>] = []
    /// A `{% generation %}` block wrote into a string, so its place in the text is unknown.
    var lostGeneration = false
    var pass = 0
    private(set) var owner: Int?
    private var start = 0

    /// From `offset` on, text belongs to `message`.
    mutating func changeOwner(to message: Int?, at offset: Int) {
        if let owner, offset > start {
            if let last = segments.last, last.message == owner, last.pass == pass, last.range.upperBound == start {
                segments[segments.count - 1].range = last.range.lowerBound..<offset
            } else {
                segments.append(Segment(message: owner, pass: pass, range: start..<offset))
            }
        }
        owner = message
        start = offset
    }
}
