import MartletCore
import MartletData
import Testing

@Suite struct DatasetErrorTests {
    let scratch = Scratch()
    let good = #"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#

    /// Rows that are bad, with their problem and a part of the reason.
    static let badRows: [(row: String, problem: String, reason: String)] = [
        ("{\"messages\":", "not valid JSON", "the text ends"),
        ("[1]", "a row is not an object", "a list"),
        ("{}", "a row lacks the column 'messages'", "no columns"),
        (#"{"prompt":"a","completion":"b"}"#, "a row lacks the column 'messages'", "'prompt', 'completion'"),
        (#"{"messages":[]}"#, "a row has no messages", "an empty list"),
        (#"{"messages":{"role":"user"}}"#, "a row has no messages", "an object"),
        (#"{"messages":null}"#, "a row has no messages", "null"),
        (#"{"messages":"[1"}"#, "a column is not valid JSON text", "the text ends inside"),
        (#"{"messages":["hi"]}"#, "a message is not an object", "message 1 is a string"),
        (#"{"messages":[{"content":"a"}]}"#, "a message has an unknown role", "'role' of message 1 is nothing"),
        (#"{"messages":[{"role":"bot","content":"a"}]}"#, "a message has an unknown role", "'bot'"),
        (#"{"messages":[{"role":"user"}]}"#, "a message has no content", "message 1 (user)"),
        (#"{"messages":[{"role":"user","content":5}]}"#, "a message's content is neither text nor parts", "a number"),
        (
            #"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":"x"}]}]}"#,
            "a message has a part that is not text", "'image_url'"
        ),
        (
            #"{"messages":[{"role":"assistant","tool_calls":[{"id":1}]}]}"#, "a message's tool_calls are malformed",
            "without a function name"
        ),
        (
            #"{"messages":[{"role":"assistant","content":"a","reasoning":1}]}"#,
            "a message's reasoning is not a string",
            "'reasoning'"
        ),
        (
            #"{"messages":[{"role":"user","content":"a"}],"tools":5}"#, "a column holds the wrong kind of value",
            "'tools' is a number"
        ),
        (#"{"messages":[{"role":"user","content":"raise"}]}"#, "the chat template refuses the conversation", ""),
        ("{\"messages\":[{\"role\":\"user\",\"content\":\"\u{0}\"}]}", "the row is not text", "NUL"),
    ]

    @Test(arguments: badRows.indices)
    func aBadRowIsAnErrorWithItsLine(index: Int) throws {
        let bad = DatasetErrorTests.badRows[index]
        // Past the first 64 KiB, so that NUL is found in the row and not at opening.
        let filler = String(repeating: "\n", count: 66_000)
        let path = scratch.file("a.jsonl", "\(good)\(filler)\(bad.row)\n\(good)\n")
        var error: MartletError?
        do throws(MartletError) { _ = try load(path) } catch let caught { error = caught }
        #expect(error?.problem == bad.problem)
        #expect(error?.location?.hasPrefix("\(path), line 66001") == true)
        #expect(bad.reason.isEmpty || error?.reason?.contains(bad.reason) == true)
        let report = try load(path) { $0.skipsBadRows = true }.report
        #expect(report.badRowCounts == [bad.problem: 1])
        #expect(report.exampleCount == 2)
        #expect(report.badRowSamples.first?.location?.hasPrefix("\(path), line 66001") == true)
    }

    @Test func skippedRowsAreCountedByReason() throws {
        let rows = [good, "x", "{}", "y", good, "z", "{}", "{}", "{}"].joined(separator: "\n")
        let report = try load(scratch.file("a.jsonl", rows)) { $0.skipsBadRows = true }.report
        #expect(report.badRowCounts == ["not valid JSON": 3, "a row lacks the column 'messages'": 4])
        #expect(report.badRowSamples.count == 5 && report.files[0].badRowCount == 7)
        #expect(report.lines.contains("4 bad rows were skipped: a row lacks the column 'messages'"))
        let late = try load(scratch.file("b.jsonl", "nonsense\n" + good)) { $0.skipsBadRows = true }
        #expect(late.count == 1 && late.report.files[0].format == .chat)
    }

    @Test func badShareGPTPromptAndAlpacaRows() {
        for (row, problem) in [
            (#"{"conversations":[{"from":"narrator","value":"a"}]}"#, "a message has an unknown role"),
            (#"{"conversations":[{"from":"human"}]}"#, "a turn has no value"),
            (#"{"conversations":[{"from":"function_call","value":"f()"}]}"#, "a function_call is not a call"),
            (#"{"prompt":"a","completion":[]}"#, "prompt and completion do not fit together"),
            (#"{"prompt":[],"completion":[]}"#, "prompt and completion do not fit together"),
            (#"{"instruction":"a","output":5}"#, "a column holds the wrong kind of value"),
            (#"{"instruction":"a","input":[],"output":"b"}"#, "a column holds the wrong kind of value"),
            (#"{"text":null}"#, "a column holds the wrong kind of value"),
            (#"{"question":"a"}"#, "cannot tell the format of the data"),
        ] {
            let error = loadingError(scratch.file("a.jsonl", row))
            #expect(error?.problem == problem)
            #expect(error?.location == "\(scratch.path)/a.jsonl, line 1")
        }
    }

    @Test func settingsThatMakeNoSense() {
        let text = scratch.file("a.jsonl", #"{"text":"a"}"#), chat = scratch.file("b.jsonl", good)
        #expect(loadingError(text) { $0.loss = .assistant }?.problem == "loss 'assistant' has no meaning for raw text")
        #expect(loadingError(chat) { $0.longExamples = .split }?.problem == "only raw text can be split")
        #expect(loadingError(chat) { $0.maxLength = 1 }?.problem == "max_length must be between 2 and 16777216")
        #expect(loadingError(chat, renderer: nil)?.problem == "the model has no chat template")
    }

    @Test func filesThatAreNoText() {
        let zeros = [UInt8](repeating: 0, count: 5000)
        for name in ["a.jsonl", "a.json", "a.csv", "a.txt"] {
            #expect(loadingError(scratch.file(name, ""))?.problem == "the file has no rows")
            #expect(loadingError(scratch.file(name, " \n\n \r\n"))?.location?.contains(name) == true)
            #expect(loadingError(scratch.file(name, zeros))?.problem == "the file is not text")
            #expect(loadingError(scratch.file(name, "{}\n\nab\u{0}"))?.location == "\(scratch.path)/\(name), line 3")
            #expect(loadingError(scratch.file(name, [0xFF, 0xFE, 0x7B, 0x00]))?.problem == "the file is UTF-16")
            let noise = (0..<3000).map { UInt8(truncatingIfNeeded: $0 * 7 % 255 + 1) }
            #expect(loadingError(scratch.file(name, noise)) != nil)
        }
    }

    @Test func invalidUTF8KnowsItsLine() {
        let bytes = Array("{\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"text\":\"".utf8) + [0xC3, 0x28] + Array("\"}\n".utf8)
        let json = loadingError(scratch.file("a.jsonl", bytes))
        #expect(json?.location?.hasPrefix("\(scratch.path)/a.jsonl, line 3, column ") == true)
        #expect(json?.reason == "a string is not valid UTF-8")
        let csv = loadingError(
            scratch.file("a.csv", Array("prompt,completion\na,b\nc,".utf8) + [0xE9, 0x0A]), renderer: nil)
        #expect(csv?.location == "\(scratch.path)/a.csv, line 3")
        let text = loadingError(scratch.file("a.txt", Array("\u{FFFD}a\nb\nc ".utf8) + [0xE9] + Array(" d\n".utf8)))
        #expect(text?.location == "\(scratch.path)/a.txt, line 3")
        #expect(text?.problem == "the row is not valid UTF-8")
    }

    @Test func veryLongLines() throws {
        let long = String(repeating: "x", count: 100_000)
        #expect(loadingError(scratch.file("a.jsonl", long))?.description.utf8.count ?? 9999 < 1000)
        #expect(
            try load(scratch.file("b.jsonl", "{\"text\":\"\(long)\"}"), maxLength: 200_000).report.tokenCount == 100_001
        )
        let deep = loadingError(scratch.file("c.jsonl", "{\"text\":" + String(repeating: "[", count: 100_000)))
        #expect(deep?.problem == "not valid JSON")
    }

    @Test func mutatedFilesLoadOrSayWhatIsWrong() throws {
        let jsonl = Array(
            "\(good)\n{\"messages\":[{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"é\"}]}]}\n".utf8
        )
        let json = Array("[\(good),\n\(good)]".utf8)
        let csv = Array("prompt,completion\r\n\"a\"\"b\",\"c\nd\"\ne,\"f\"\n".utf8)
        var random = RandomStream(seed: 7)
        let alphabet = Array("\"\\,\n\r{}[]:\t0a ".utf8) + [0, 0xFF, 0xC3, 0xEF]
        var loaded = 0, refused = 0
        for round in 0..<600 {
            let name = ["f.jsonl", "f.json", "f.csv"][round % 3]
            var bytes = [jsonl, json, csv][round % 3]
            for _ in 0...Int.random(in: 0..<4, using: &random) {
                let place = Int.random(in: 0..<bytes.count, using: &random)
                let byte = alphabet[Int.random(in: 0..<alphabet.count, using: &random)]
                switch Int.random(in: 0..<4, using: &random) {
                case 0: bytes[place] = byte
                case 1: bytes.insert(byte, at: place)
                case 2: bytes.remove(at: place)
                default: bytes.removeSubrange(place...)
                }
                if bytes.isEmpty { bytes = [byte] }
            }
            let path = scratch.file(name, bytes)
            do throws(MartletError) {
                let dataset = try load(path) { $0.skipsBadRows = round % 2 == 0 }
                loaded += 1
                #expect(dataset.report.files[0].rowCount >= dataset.count + dataset.report.badRowCount)
            } catch {
                refused += 1
                #expect(error.location?.contains(name) == true && error.remedy != nil)
            }
        }
        #expect(loaded > 50 && refused > 50)
    }
}
