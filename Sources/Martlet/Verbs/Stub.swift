package import MartletCore
package import MartletData
package struct Tokenizer: TextEncoder {
    package init(folder: String) throws(MartletError) {}
    package var bosID: Int32? { nil }
    package var eosID: Int32? { nil }
    package func encodeWithOffsets(_ text: String, addsSpecialTokens: Bool) -> (ids: [Int32], ranges: [Range<Int>]) { ([], []) }
    package func decode(_ ids: [Int32], skipsSpecialTokens: Bool) -> String { "" }
    package func encode(_ text: String, addsSpecialTokens: Bool) throws(MartletError) -> [Int32] { [] }
    package func streamDecoder(skipsSpecialTokens: Bool) -> StreamDecoder { StreamDecoder() }
    package func id(of token: String) -> Int32? { 0 }
    package var vocabularyCount: Int { 260 }
}
package struct StreamDecoder { mutating func feed(_ id: Int32) -> String { "" }; mutating func finish() -> String { "" } }
package struct BPETrainer { init(vocabularyCount: Int, specialTokens: [String]) {}; func train(on: String) throws(MartletError) -> JSON { [:] } }
package struct ChatTemplate: ConversationRenderer {
    package init(folder: String) throws(MartletError) {}
    package func render(messages: [JSON], addsGenerationPrompt: Bool) throws(MartletError) -> (text: String, x: Int) { ("", 0) }
    package func render(messages: [JSON], tools: JSON?, variables: JSONObject, spans: AssistantSpans) throws(MartletError) -> RenderedConversation { RenderedConversation(text: "", assistantSpans: []) }
}
