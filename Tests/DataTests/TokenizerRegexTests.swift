import MartletCore
import Testing

@testable import MartletData

struct TokenizerRegexTests {
    /// The matches of a pattern, as Oniguruma of tokenizers 0.23.3 gives them.
    @Test(arguments: [
        (#"\w+"#, "a² ³b ¹ ¼ß", ["a²", "³b", "¹", "¼ß"]), (#"[\w]+"#, "a² ³b ¹ ¼ß", ["a", "b", "ß"]),
        (#"a\b"#, "a² ab a", ["a"]), ("(?i:'s|'t|'k)", "'S 'ſ 'T 'K \u{2019}s", ["'S", "'ſ", "'T", "'K"]),
        ("(?i:[^s]+)", "sSſx", ["x"]), (#"(?i)\p{Lu}+"#, "abC", ["C"]), ("(?i)[[:upper:]]+", "abC", ["abC"]),
        ("a{,2}", "aaaa b", ["aa", "aa"]), ("a{2}+", "aaaaa", ["aaaa"]), ("a{2}?", "aaaaa b", ["aa", "aa"]),
        ("a{1,2}+a", "aaaaa b", ["aaaaa"]), ("(?m).+", "a\nb", ["a\nb"]),
        (".+", "a\nb\rc\u{2028}d", ["a", "b\rc\u{2028}d"]),
        ("^b$", "a\nb\nc", ["b"]), ("[a-z&&[^b]]+", "abcd", ["a", "cd"]), ("[a[bc]]+", "abcd[]", ["abc"]),
        ("[]a]+", "]a", ["]a"]), ("[a-]+", "a-1z", ["a-"]), ("[--a]+", "a-1z.", ["a-1", "."]),
        ("[a-c-e]+", "abcde-", ["abc", "e-"]),
        (#"\u0041\x41\x{41}"#, "AAA", ["AAA"]), (#"\101"#, "A", ["A"]), (#"\p{Uppercase Letter}+"#, "aA", ["A"]),
        (#"\p{^L}+"#, "aA--", ["--"]), (#"\R"#, "a\r\nb\n", ["\r\n", "\n"]), ("(?<=a|bc)d", "ad bcd dd", ["d", "d"]),
        ("(?<=a*)d", "ad bcd", ["d", "d"]), ("(?>a+)b", "aab", ["aab"]), ("(?>a+)ab", "aab", []),
        ("a++b", "aab", ["aab"]),
        ("(?x) a b # c", "ab", ["ab"]), (#"\h+\H"#, "ffg", ["ffg"]), (#"[\b]"#, "\u{8}", ["\u{8}"]),
        ("a**", "aa", ["aa"]),
        ("a{", "a{", ["a{"]), ("a{x}", "a{x}", ["a{x}"]), ("a]", "a]", ["a]"]), (#"\Gab"#, "abab ab", ["ab", "ab"]),
        (#"\Ab"#, "bb", ["b"]), ("a(?i)b|c", "aB C aC", ["aB", "aC"]), ("(?i:σ)+", "Σσς", ["Σσς"]),
        (#"\W+"#, "ſ\r\n", ["\r\n"]),
        (#"(?:a?b?)*c"#, "abac", ["abac"]), ("(?:a|ab)(?:c|bcd)(?:d*)", "abcd", ["abcd"]), ("a.*?b", "axbxb", ["axb"]),
        ("(?:ab)+?c", "ababc", ["ababc"]), ("(?<!a)b", "ab b", ["b"]), ("x(?!y)", "xy xz", ["x"]),
        ("[^a]", "aé", ["é"]),
    ])
    func matchesWhatOnigurumaMatches(pattern: String, text: String, wanted: [String]) throws {
        let found = try SmallTokenizer.pieces(text, SmallTokenizer.split(pattern, "Removed", inverts: true))
        #expect(found.map { Array($0.utf8) } == wanted.map { Array($0.utf8) })
    }

    @Test(arguments: [
        "(", "a)", "[", "[]", "[^]", "*a", "a|*", #"\"#, "(?s).", #"(a)\1"#, #"\p{IsHan}"#, #"\p{L"#, #"\pL"#,
        #"[a-\d]"#, #"[\d-z]"#,
        "[z-a]", "a{2,1}", "a{999999}", "(?:(?:ab){1000}){1000}", #"\X"#, #"\k<n>"#, "(?~a)", "(?i:ss)", "(?i:ß)",
        #"\x{110000}"#,
        #"\x{D800}"#, String(repeating: "(", count: 5000) + String(repeating: ")", count: 5000),
        String(repeating: "[", count: 5000),
        (0..<2000).map { "[a\(UnicodeScalar(UInt32(0x4E00 + $0))!)]" }.joined(),
    ])
    func badPatternsAreRefused(pattern: String) {
        let error = #expect(throws: MartletError.self) { _ = try RegexProgram(pattern) }
        #expect(error?.remedy != nil && error?.reason != nil)
    }

    @Test(arguments: [
        ("(a+)+b", 40), ("(?:a|a)*b", 60), ("(?:a*)*b", 60), ("a*a*a*a*a*a*b", 2000), ("(?=(?:a+)+b)", 40),
    ])
    func hostilePatternsEndInAnErrorThatNamesThem(pattern: String, count: Int) throws {
        let tokenizer = try Tokenizer(
            json: SmallTokenizer.json(["a"], parts: ["pre_tokenizer": SmallTokenizer.split(pattern)]))
        let error = #expect(throws: MartletError.self) { try tokenizer.encode(String(repeating: "a", count: count)) }
        #expect(error?.description.contains(pattern) == true)
        #expect(try tokenizer.encode("a") == [0], "the next text is not affected")
    }

    @Test func longRunsAreNoTrouble() throws {
        let tokenizer = try Tokenizer(
            json: SmallTokenizer.json(
                [" ", "a"], parts: ["pre_tokenizer": SmallTokenizer.split(BPETrainer.qwenPattern)]))
        for unit in [" ", "a", "\n", "\u{3000}", "!", " \n"] {
            _ = try tokenizer.encode(String(repeating: unit, count: 20_000))
        }
    }

    @Test(arguments: [
        ("Isolated", false, ["a", "  ", "b", " ", " ", "c"]), ("Removed", false, ["a", "b", "c"]),
        ("MergedWithPrevious", false, ["a  ", "b ", " ", "c"]), ("MergedWithNext", false, ["a", "  b", " ", " c"]),
        ("Contiguous", false, ["a", "  ", "b", "  ", "c"]), ("Removed", true, ["  ", " ", " "]),
        ("MergedWithNext", true, ["a  ", "b ", " ", "c"]),
    ])
    func splitBehaviors(behavior: String, inverts: Bool, wanted: [String]) throws {
        // The pattern takes the spaces after 'a' in one match and those after 'b' in two.
        let split = SmallTokenizer.split("(?<=a) +| ", behavior, inverts: inverts)
        #expect(try SmallTokenizer.pieces("a  b  c", split) == wanted)
    }
}
