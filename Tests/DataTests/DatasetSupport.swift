import MartletCore
import MartletData
import Testing

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// A tokenizer of bytes: ids 0 to 255 are bytes, the rest special tokens.
struct ByteEncoder: TextEncoder {
    static let specials: [(text: String, id: Int32)] = [
        ("<|im_start|>", 256), ("<|im_end|>", 257), ("<s>", 258), ("</s>", 259),
    ]
    var addsBos = false
    var addsEos = false
    var bosID: Int32? = 258
    var eosID: Int32? = 259

    func encodeWithOffsets(_ text: String, addsSpecialTokens: Bool) -> (ids: [Int32], ranges: [Range<Int>]) {
        let bytes = Array(text.utf8)
        var ids: [Int32] = [], ranges: [Range<Int>] = []
        if addsSpecialTokens && addsBos { (ids, ranges) = ([258], [0..<0]) }
        var i = 0
        while i < bytes.count {
            let mayBeSpecial = bytes[i] == UInt8(ascii: "<")
            let special = mayBeSpecial ? ByteEncoder.specials.first { bytes[i...].starts(with: $0.text.utf8) } : nil
            let length = special?.text.utf8.count ?? 1
            ids.append(special?.id ?? Int32(bytes[i]))
            ranges.append(i..<i + length)
            i += length
        }
        if addsSpecialTokens && addsEos {
            ids.append(259)
            ranges.append(bytes.count..<bytes.count)
        }
        return (ids, ranges)
    }

    func decode(_ ids: [Int32], skipsSpecialTokens: Bool) -> String {
        var bytes: [UInt8] = []
        for id in ids {
            if let special = ByteEncoder.specials.first(where: { $0.id == id }) {
                if !skipsSpecialTokens { bytes += Array(special.text.utf8) }
            } else {
                bytes.append(UInt8(id))
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// ChatML, as many published templates write it; the message "raise" makes the template fail.
struct ChatMLRenderer: ConversationRenderer {
    func render(
        messages: [JSON], tools: JSON?, variables: JSONObject, trained: TrainedTurns
    ) throws(MartletError) -> RenderedConversation {
        var text = tools.map { "tools: \($0.text())\n" } ?? ""
        for (name, value) in variables { text += "\(name)=\(value.text())\n" }
        var found: [Range<Int>] = []
        for (i, message) in messages.enumerated() {
            let role = message["role"]?.string ?? "", content = message["content"]?.string ?? ""
            if content == "raise" { throw MartletError("the chat template refuses the conversation") }
            text += "<|im_start|>\(role)\n"
            let start = text.utf8.count
            if let reasoning = message["thinking"]?.string { text += "<think>\(reasoning)</think>" }
            text += content
            if let calls = message["tool_calls"] { text += calls.text() }
            text += "<|im_end|>"
            let isPrompt = if case .from(let first) = trained { i < first } else { false }
            if role == "assistant", !isPrompt { found.append(start..<text.utf8.count) }
            text += "\n"
        }
        if trained == .none { found = [] }
        if trained == .last { found = Array(found.suffix(1)) }
        return RenderedConversation(text: text, trainedSpans: found)
    }
}

/// A folder that is removed after the test.
final class Scratch {
    let path: String

    init() {
        path = "\(FileManager.default.temporaryDirectory.path)/martlet-test-\(UInt64.random(in: 0...UInt64.max))"
        try? FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// Writes a file and returns its path.
    func file(_ name: String, _ bytes: some Sequence<UInt8>) -> String {
        let full = "\(path)/\(name)"
        _ = FileManager.default.createFile(atPath: full, contents: Data(bytes))
        return full
    }

    func file(_ name: String, _ text: String) -> String { file(name, text.utf8) }
}

/// Loads a dataset with the fakes.
func load(
    _ paths: [String], maxLength: Int = 1000, encoder: ByteEncoder = ByteEncoder(),
    renderer: (any ConversationRenderer)? = ChatMLRenderer(), _ change: (inout DatasetSettings) -> Void = { _ in }
) throws(MartletError) -> TokenizedDataset {
    var settings = DatasetSettings(maxLength: maxLength)
    change(&settings)
    return try TokenizedDataset(paths: paths, settings: settings, encoder: encoder, renderer: renderer)
}

func load(
    _ path: String, maxLength: Int = 1000, encoder: ByteEncoder = ByteEncoder(),
    renderer: (any ConversationRenderer)? = ChatMLRenderer(), _ change: (inout DatasetSettings) -> Void = { _ in }
) throws(MartletError) -> TokenizedDataset {
    try load([path], maxLength: maxLength, encoder: encoder, renderer: renderer, change)
}

/// The error of loading, which must occur and say how to mend it.
func loadingError(
    _ path: String, renderer: (any ConversationRenderer)? = ChatMLRenderer(),
    sourceLocation: SourceLocation = #_sourceLocation, _ change: (inout DatasetSettings) -> Void = { _ in }
) -> MartletError? {
    do throws(MartletError) {
        _ = try load(path, renderer: renderer, change)
        Issue.record("no error was thrown", sourceLocation: sourceLocation)
        return nil
    } catch {
        #expect(error.remedy != nil, sourceLocation: sourceLocation)
        return error
    }
}

/// An example with its trained stretches in «».
func marked(_ dataset: TokenizedDataset, _ index: Int = 0) throws(MartletError) -> String {
    try dataset.inspect(index).pieces.map { $0.isTrained ? "«\($0.text)»" : $0.text }.joined()
}

/// A step with what its sequences say, for comparison.
func sequences(_ step: PackedStep) -> [[Int32]] {
    (0..<step.sequenceCount).map { Array(step.tokens[step.offsets[$0]..<step.offsets[$0 + 1]]) }
}
