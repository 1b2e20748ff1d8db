import CMartletSystem
import MartletCore
import MartletData
import Testing

/// Compresses one gzip member with zlib.
func gzip(_ bytes: [UInt8]) -> [UInt8] {
    var stream = z_stream()
    let size = Int32(MemoryLayout<z_stream>.size)
    deflateInit2_(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY, ZLIB_VERSION, size)
    defer { deflateEnd(&stream) }
    var input = bytes
    var output = [UInt8](repeating: 0, count: Int(deflateBound(&stream, UInt(bytes.count))) + 64)
    input.withUnsafeMutableBufferPointer { input in
        output.withUnsafeMutableBufferPointer { output in
            stream.next_in = input.baseAddress
            stream.avail_in = UInt32(input.count)
            stream.next_out = output.baseAddress
            stream.avail_out = UInt32(output.count)
            _ = deflate(&stream, Z_FINISH)
        }
    }
    return Array(output.prefix(Int(stream.total_out)))
}

@Suite struct DatasetReaderTests {
    let scratch = Scratch()

    func texts(_ dataset: TokenizedDataset) throws -> [String] {
        try (0..<dataset.count).map { try dataset.inspect($0).pieces.map(\.text).joined() }
    }

    func csv(_ text: String, name: String = "a.csv") throws -> [String] {
        try texts(try load(scratch.file(name, text), renderer: nil))
    }

    @Test func jsonLinesSkipBlankLinesAndKnowTheirPlace() throws {
        let path = scratch.file("a.jsonl", "\u{FEFF}\n{\"text\":\"a\"}\r\n  \n\n{\"text\":\"b\"}")
        let dataset = try load(path)
        #expect(try texts(dataset) == ["a</s>", "b</s>"])
        #expect(dataset.location(of: 0) == "\(path), line 2")
        #expect(dataset.location(of: 1) == "\(path), line 5")
    }

    @Test func jsonLists() throws {
        let path = scratch.file("a.json", " [\n{\"text\":\"]\\\",[\"},\n\n {\"text\"\n:\"b\"}\n]\n")
        let dataset = try load(path)
        #expect(try texts(dataset) == ["],[</s>", "b</s>"].map { $0.replacing("],[", with: "]\",[") })
        #expect(dataset.location(of: 1) == "\(path), line 4")
        #expect(dataset.report.files[0].kind == "JSON list")
    }

    @Test func brokenJSONListsSayWhere() throws {
        for (text, line, reason) in [
            ("[{\"text\":\"a\"},\n\n]", 3, "an element is missing"), ("[\n,]", 2, "an element is missing"),
            ("[{\"text\":\"a\"}\n", 2, "the file ends before the list is closed"),
            ("[{\"text\":\"a\"}]\n\nx", 3, "there is more text after the list"),
        ] {
            let error = loadingError(scratch.file("b.json", text))
            #expect(error?.location == "\(scratch.path)/b.json, line \(line)")
            #expect(error?.reason == reason)
        }
        let inside = loadingError(scratch.file("c.json", "[{\"text\":\"a\"},\n{\"text\":\n\n nul}]"))
        #expect(inside?.location == "\(scratch.path)/c.json, line 4, column 2")
    }

    @Test func csvTorture() throws {
        #expect(try csv("prompt,completion\na,b\n") == ["ab</s>"])
        #expect(try csv("\u{FEFF}prompt,completion\r\n\"a\",\"b\"") == ["ab</s>"])
        #expect(try csv("prompt,completion\n\"x, \"\"y\"\"\r\nz\",\" b \"\n") == ["x, \"y\"\r\nz b </s>"])
        #expect(try csv("prompt,completion\n\"\",b\n,\"\"\"\"\n") == ["b</s>", "\"</s>"])
        #expect(try csv("prompt,completion\n5\" pipe,b\n\n\r\nc,d") == ["5\" pipeb</s>", "cd</s>"])
        #expect(try csv("\"prompt\",\"completion\",\"\"\nä,ö,\n") == ["äö</s>"])
        #expect(try csv("prompt\tcompletion\na,1\tb\n", name: "a.tsv") == ["a,1b</s>"])
        #expect(try csv("text\n\"a\n\n\nb\"\nc\n") == ["a\n\n\nb</s>", "c</s>"])
    }

    @Test func csvErrorsKnowTheirLine() throws {
        for (text, line, problem) in [
            ("prompt,completion\na,b\nc\n", 3, "the row has the wrong number of fields"),
            ("prompt,completion\n\"a\n\",b\n\n\"c\"d,e\n", 5, "not valid CSV"),
            ("prompt,completion\na,b\n\"c,d\ne,f\n", 3, "not valid CSV"),
            ("prompt,prompt\na,b\n", 1, "two CSV columns have the same name"),
        ] {
            let error = loadingError(scratch.file("b.csv", text))
            #expect(error?.location == "\(scratch.path)/b.csv, line \(line)")
            #expect(error?.problem == problem)
        }
        #expect(loadingError(scratch.file("c.csv", "prompt,completion\n"))?.problem == "the file has no rows")
    }

    @Test func gzipOfOneAndOfSeveralMembers() throws {
        let first = gzip(Array("{\"text\":\"a\"}\n{\"te".utf8)), second = gzip(Array("xt\":\"b\"}\n".utf8))
        let dataset = try load(scratch.file("a.jsonl.gz", first + second + [0, 0, 0]))
        #expect(try texts(dataset) == ["a</s>", "b</s>"])
        #expect(dataset.report.files[0].isCompressed)
        let big = String(repeating: "{\"text\":\"0123456789\"}\n", count: 20_000)
        #expect(try load(scratch.file("b.jsonl.gz", gzip(Array(big.utf8)))).count == 20_000)
    }

    @Test func damagedGzipNamesTheFile() throws {
        let good = gzip(Array(String(repeating: "{\"text\":\"abc\"}\n", count: 100).utf8))
        var flipped = good
        flipped[good.count - 6] ^= 1
        for bytes in [Array(good.dropLast(9)), Array(good.prefix(5)), flipped, good + [7], good + [0, 7]] {
            let error = loadingError(scratch.file("a.jsonl.gz", bytes))
            #expect(error?.problem == "the gzip file is damaged")
            #expect(error?.location == "\(scratch.path)/a.jsonl.gz")
        }
        #expect(loadingError(scratch.file("b.jsonl.gz", "{}"))?.problem == "this is not a gzip file")
    }

    @Test func plainText() throws {
        let path = scratch.file("a.txt", "one\r\ntwo\n\n \nthree\n\n\n\nfour  ")
        #expect(try texts(try load(path)) == ["one\ntwo\n\n \nthree\n\n\n\nfour  </s>"])
        let documents = try load(path) { $0.textDocuments = .blankLine }
        #expect(try texts(documents) == ["one\ntwo</s>", "three</s>", "four</s>"])
        #expect(documents.location(of: 1) == "\(path), line 5")
        #expect(documents.report.notes.contains { $0.contains("between empty lines") })
    }

    @Test(arguments: ["line of text, not long\n", "é"])
    func aLongTextIsReadInPiecesAndLosesNothing(unit: String) throws {
        let text = String(repeating: unit, count: 1_200_000 / unit.utf8.count)
        let dataset = try load(scratch.file("a.txt", text), maxLength: 1 << 21, encoder: ByteEncoder(addsBos: true))
        #expect(dataset.count > 1 && dataset.report.splitCount == 0)
        let tokens = try (0..<dataset.count).flatMap { try dataset.example($0).tokens }
        #expect(tokens.count == text.utf8.count + 2)
        // A bare Bool: a failure must not print millions of numbers.
        let isWhole = tokens == [258] + text.utf8.map(Int32.init) + [259]
        #expect(isWhole)
    }

    @Test func foldersAndSeveralFiles() throws {
        _ = scratch.file("b.jsonl", #"{"text":"b"}"#)
        _ = scratch.file("a.csv", "prompt,completion\np,c\n")
        _ = scratch.file("LICENSE", "x")
        _ = scratch.file(".hidden.jsonl", "x")
        let dataset = try load(scratch.path, renderer: nil)
        #expect(try texts(dataset) == ["pc</s>", "b</s>"])
        #expect(dataset.report.ignoredPaths == ["\(scratch.path)/LICENSE"])
        #expect(dataset.report.files.map(\.format) == [.promptCompletion, .text])
        let twice = try load(["\(scratch.path)/b.jsonl", "\(scratch.path)/b.jsonl"])
        #expect(twice.count == 2)
        let empty = Scratch()
        #expect(loadingError(empty.path)?.problem == "the folder holds no data files")
        #expect(loadingError("\(scratch.path)/nowhere.jsonl")?.problem == "the data file does not exist")
        #expect(loadingError("/dev/null")?.problem == "cannot read this as a data file")
        #expect(loadingError(scratch.file("x.parquet", "PAR1"))?.problem == "cannot tell what kind of data this is")
    }
}
