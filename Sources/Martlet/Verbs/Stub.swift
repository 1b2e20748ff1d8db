package import MartletCore
package import MartletData
package struct Tokenizer: TextEncoder {
    package init(folder: String) throws(MartletError) {}
    package var bosID: Int32? { nil }
    package var eosID: Int32? { nil }
    package func encodeWithOffsets(_ text: String, addsSpecialTokens: Bool) -> (ids: [Int32], ranges: [Range<Int>]) { ([], []) }
    package func decode(_ ids: [Int32], skipsSpecialTokens: Bool) -> String { "" }
    package func encode(_ text: String, addsSpecialTokens: Bool) -> [Int32] { [] }
}
package struct ChatTemplate: ConversationRenderer {
    package static func find(in folder: String) throws(MartletError) -> ChatTemplate? { nil }
    package func prompt(messages: [JSON]) throws(MartletError) -> String { "" }
    package func render(messages: [JSON], tools: JSON?, variables: JSONObject, spans: AssistantSpans) throws(MartletError) -> RenderedConversation { RenderedConversation(text: "", assistantSpans: []) }
}
