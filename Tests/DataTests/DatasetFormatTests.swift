import MartletCore
import MartletData
import Testing

@Suite struct DatasetFormatTests {
    let scratch = Scratch()

    func first(
        _ row: String, _ name: String = "a.jsonl", renderer: (any ConversationRenderer)? = ChatMLRenderer()
    ) throws -> String {
        try marked(try load(scratch.file(name, row), renderer: renderer))
    }

    @Test func chatTrainsAssistantTurnsWithTheirEnd() throws {
        let text = try first(
            """
            {"messages":[{"role":"system","content":"S"},{"role":"user","content":"a"},{"role":"assistant","content":"b"},\
            {"role":"user","content":"c"},{"role":"assistant","content":"dé"}]}
            """)
        #expect(
            text
                == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n"
                + "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«dé<|im_end|>»\n")
    }

    @Test func lossScopes() throws {
        let path = scratch.file(
            "a.jsonl",
            """
            {"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},\
            {"role":"assistant","content":"d"}]}
            """)
        let last = try marked(try load(path) { $0.loss = .lastAssistant })
        #expect(last.hasSuffix("assistant\n«d<|im_end|>»\n"))
        #expect(last.contains("\nb<|im_end|>"))
        let all = try load(path) { $0.loss = .all }
        #expect(try marked(all).hasPrefix("«<|im_start|>user"))
        #expect(all.report.trainedTokenCount == all.report.tokenCount - 1)
    }

    @Test func partsReasoningToolsAndVariables() throws {
        let text = try first(
            """
            {"messages":[{"role":"developer","content":"D"},{"role":"user","content":[{"type":"text","text":"a"},\
            {"type":"text","text":"b"}]},{"role":"assistant","content":null,"thinking":"t",\
            "tool_calls":[{"name":"f","arguments":{}}]},{"role":"tool","content":"r","name":null},\
            {"role":"assistant","content":"x"}],"tools":[{"name":"f"}],"chat_template_kwargs":{"enable_thinking":false}}
            """)
        #expect(text.hasPrefix("tools: [{\"name\": \"f\"}]\nenable_thinking=false\n<|im_start|>developer\nD"))
        #expect(text.contains("user\nab<|im_end|>"))
        #expect(
            text.contains(
                "«<think>t</think>[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": {}}}]<|im_end|>»"
            ))
        #expect(text.contains("tool\nr<|im_end|>"))
    }

    @Test func shareGPT() throws {
        let text = try first(
            """
            {"system":"S","conversations":[{"from":"human","value":"a"},{"from":"function_call","value":"{\\"name\\":\\"f\\"}"},\
            {"from":"observation","value":"o"},{"from":"gpt","value":"b"}]}
            """)
        #expect(
            text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
                + "«[{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]<|im_end|>»\n"
                + "<|im_start|>tool\no<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n")
    }

    @Test func promptCompletionWithAndWithoutTemplate() throws {
        let row = #"{"prompt":"2+2=","completion":"4"}"#
        #expect(try first(row) == "<|im_start|>user\n2+2=<|im_end|>\n<|im_start|>assistant\n«4<|im_end|>»\n")
        #expect(try first(row, renderer: nil) == "2+2=«4</s>»")
        let lists = """
            {"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}],\
            "completion":[{"role":"assistant","content":"d"}]}
            """
        let text = try first(lists)
        #expect(text.contains("assistant\nb<|im_end|>\n") && text.hasSuffix("assistant\n«d<|im_end|>»\n"))
    }

    @Test func alpaca() throws {
        let with = #"{"instruction":"Add.","input":"1 2","output":"3"}"#,
            without = #"{"instruction":"Hi","output":"Ho"}"#
        #expect(try first(with, renderer: nil) == "Add.\n\n1 2\n\n«3</s>»")
        #expect(try first(without, renderer: nil) == "Hi\n\n«Ho</s>»")
        #expect(try first(with) == "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n«3<|im_end|>»\n")
        let system = #"{"instruction":"Hi","input":null,"output":"Ho","system":"S"}"#
        #expect(try first(system).hasPrefix("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>"))
    }

    @Test func rawTextIsTrainedWholeWithEnd() throws {
        #expect(try first(#"{"text":"abc"}"#) == "«abc</s>»")
        let bos = try load(
            scratch.file("b.jsonl", #"{"text":"abc"}"#), encoder: ByteEncoder(addsBos: true, addsEos: true))
        #expect(try bos.example(0).tokens == [258, 97, 98, 99, 259])
        let twice = try load(scratch.file("c.jsonl", #"{"text":"<s>abc"}"#), encoder: ByteEncoder(addsBos: true))
        #expect(try twice.example(0).tokens == [258, 97, 98, 99, 259])
    }

    @Test func columnsCanBeMapped() throws {
        let path = scratch.file("a.jsonl", #"{"question":"q","answer":"a"}"#)
        let columns = try ColumnNames(["prompt": "question", "completion": "answer"])
        let dataset = try load(path, renderer: nil) { $0.columns = columns }
        #expect(try marked(dataset) == "q«a</s>»")
        #expect(dataset.report.files[0].format == .promptCompletion && dataset.report.files[0].isFormatDetected)
        let wrong = #expect(throws: MartletError.self) { try ColumnNames(["promt": "question"]) }
        #expect(wrong?.remedy?.contains("did you mean 'prompt'?") == true)
    }

    @Test func chatInCSVIsJSONText() throws {
        let csv =
            "messages\r\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"a\"\"},{\"\"role\"\":\"\"assistant\"\",\"\"content\"\":\"\"b\"\"}]\"\r\n"
        #expect(try first(csv, "a.csv").hasSuffix("«b<|im_end|>»\n"))
    }

    @Test func everyFormatIsDetectedAndCanBeSet() throws {
        let row = #"{"messages":[{"role":"assistant","content":"m"}],"text":"t","prompt":"p","completion":"c"}"#
        let path = scratch.file("a.jsonl", row)
        #expect(try load(path).report.files[0].format == .chat)
        let set = try load(path) { $0.format = .text }
        #expect(try marked(set) == "«t</s>»")
        #expect(set.report.files[0].isFormatDetected == false)
    }

    @Test func longExamplesAreCutDroppedOrSplit() throws {
        let path = scratch.file("a.jsonl", "{\"text\":\"abcdefghij\"}\n{\"text\":\"k\"}\n")
        let split = try load(path, maxLength: 4)
        #expect(
            try (0..<split.count).map { try marked(split, $0) } == ["«abcd»", "d«efg»", "g«hij»", "j«</s>»", "«k</s>»"])
        #expect(split.report.splitCount == 1 && split.report.trainedTokenCount == 10 + 1)
        let cut = try load(path, maxLength: 4) { $0.longExamples = .truncate }
        #expect(try (0..<cut.count).map { try marked(cut, $0) } == ["«abcd»", "«k</s>»"])
        #expect(cut.report.truncatedCount == 1)
        let dropped = try load(path, maxLength: 4) { $0.longExamples = .drop }
        #expect(dropped.count == 1 && dropped.report.droppedCount == 1)
    }

    @Test func anExampleWithNothingToTrainIsCounted() throws {
        let path = scratch.file(
            "a.jsonl",
            """
            {"messages":[{"role":"user","content":"a"}]}
            {"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}
            """)
        let report = try load(path).report
        #expect(report.emptyMaskCount == 1 && report.exampleCount == 1)
        #expect(report.lines.contains { $0.hasPrefix("1 examples were left out: nothing in them is trained") })
        let all = loadingError(scratch.file("b.jsonl", #"{"messages":[{"role":"user","content":"a"}]}"#))
        #expect(all?.problem == "no example is left to train on")
        #expect(all?.reason?.contains("nothing in them is trained") == true)
    }
}
