import MartletCore
import Testing

@testable import MartletData

/// Templates come with models, from anywhere: whatever they hold, rendering ends, in text or in an error.
@Suite struct TemplateRobustnessTests {
    private func error(_ source: String) -> MartletError? {
        do throws(MartletError) {
            var template = try ChatTemplate(source: source)
            template.limits.steps = 300_000
            _ = try template.render(messages: [["role": "user", "content": "x"]])
            return nil
        } catch { return error }
    }

    @Test(arguments: [
        // Without an end, as far as there can be none.
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
        "{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f(x) %}{% if f(x) %}{% endif %}{% endmacro %}{{ f(0) }}",
        "{% macro f() %}{% call f() %}{% endcall %}{% endmacro %}{{ f() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        // Huge.
        "{{ 'a' * 99999999999 }}", "{{ 'a' * 9223372036854775807 }}", "{{ [1] * 99999999999 }}",
        "{{ (1, 2) * 9223372036854775807 }}",
        "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s | length }}",
        "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s | replace('a', 'aaaaaaaaaa') %}{% endfor %}",
        "{% set ns = namespace(l=[1, 2]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
        "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(99) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}",
        "{% set ns = namespace(l={}) %}{% for i in range(99999) %}{% set ns.l = {'a': ns.l} %}{% endfor %}",
        "{{ '%999999999d' % 1 }}", "{{ '%.999999999f' % 1.0 }}", "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 'x'.ljust(999999999999) }}", "{{ 'x' | center(999999999) }}", "{{ 'x' | indent(99999999999, true) }}",
        "{{ '1'.zfill(9999999999) }}",
        "{{ [1] | batch(99999999999, 1) | list }}", "{{ [1] | slice(99999999) | list }}", "{{ range(100001) }}",
        "{{ [1] | tojson(indent=99999999999) }}",
        "{{ range(0, 9223372036854775807, 1) }}", "{{ range(-9223372036854775807, 9223372036854775807) }}",
        "{% for i in range(9999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' * 999 }}{% endfor %}",
        "{{ range(99999) | map('string') | unique | list }}", "{{ dict(range(99999) | map('string') | batch(2)) }}",
        // Beyond 64 bits.
        "{{ 9223372036854775807 + 1 }}", "{{ -9223372036854775807 - 2 }}", "{{ 9223372036854775807 * 2 }}",
        "{{ 2 ** 64 }}", "{{ 10 ** 9223372036854775807 }}",
        "{{ (-9223372036854775807 - 1) // -1 }}", "{{ -(-9223372036854775807 - 1) }}",
        "{{ (-9223372036854775807 - 1) | abs }}", "{{ 1e308 | int }}",
        "{{ 99999999999999999999 }}", "{{ 2.0 ** 99999 }}", "{{ 1.5 | round(999999999) }}",
        "{{ 9223372036854775807 | round(-1) }}",
        // Nested too deeply to read.
        String(repeating: "(", count: 5000), String(repeating: "{{ [", count: 5000),
        "{{ " + String(repeating: "not ", count: 5000) + "1 }}",
        "{{ " + String(repeating: "-", count: 5000) + "1 }}", "{{ 1" + String(repeating: " + 1", count: 5000) + " }}",
        "{{ 1" + String(repeating: " | abs", count: 5000) + " }}",
        "{{ x" + String(repeating: ".y", count: 5000) + " }}", "{{ x" + String(repeating: "[0]", count: 5000) + " }}",
        "{{ x" + String(repeating: " if x else x", count: 5000) + " }}",
        String(repeating: "{% if 1 %}", count: 5000), String(repeating: "{% for x in y %}", count: 5000),
        "{{ " + String(repeating: "[", count: 200) + String(repeating: "]", count: 200) + " }}",
        "{% set " + String(repeating: "(", count: 5000), "{{ " + String(repeating: "{1:", count: 5000),
        "{{ x is " + String(repeating: "eq x is ", count: 5000),
    ])
    func endsInAnError(source: String) {
        let clock = ContinuousClock()
        let start = clock.now
        let error = error(source)
        // Plain text is no template: it renders.
        if source.first == "{" { #expect(error?.remedy != nil && error?.location != nil, "\(source.prefix(80))") }
        #expect(clock.now - start < .seconds(5), "\(source.prefix(80))")
    }

    @Test func survivesCirclesOfValues() {
        for source in [
            "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns.me.me is defined }}{{ ns == ns }}",
            "{% set ns = namespace() %}{% for i in range(9999) %}{% set ns.x = namespace(p=ns.x) %}{% endfor %}done",
            "{% set ns = namespace() %}{% for i in range(9999) %}{% for j in [ns.x] %}{% set ns.x = loop %}{% endfor %}{% endfor %}done",
            "{% set ns = namespace() %}{% for i in range(9999) %}{% macro m() %}{{ ns.x }}{% endmacro %}{% set ns.x = m %}{% endfor %}done",
        ] { #expect(error(source) == nil, "\(source)") }
        #expect(error("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}") != nil)
        #expect(
            error("{% set ns = namespace(x='a') %}{% for i in range(9999) %}{% set ns.x = cycler(ns.x) %}{% endfor %}")
                == nil)
    }

    @Test func namesTheLineAndTheReason() {
        let raised = error("a\n{{ raise_exception('roles must\\nalternate') }}")
        #expect(raised?.reason == "roles must\nalternate")
        #expect(raised?.location == "chat template, line 2")
        #expect(error("a\n\n{{ 1 +\n 'x' }}")?.location == "chat template, line 3")
        #expect(error("{% if 1 %}\n\n{{ nope.x }}{% endif %}")?.location == "chat template, line 3")
        #expect(error("{#\n\n#}{%\nfrobnicate %}")?.location == "chat template, line 4")
    }

    /// Damaged templates: parts lost, doubled and swapped, and bytes changed, thousands of times.
    @Test func survivesMutations() throws {
        let goldens = try TemplateGoldens.shared.get()
        let families = (goldens.root["templates"]?.object).map { $0.compactMap { $0.value.string } } ?? []
        let statements = goldens.cases.compactMap { $0["template"]?.string }.filter { !$0.hasPrefix("@") }
        let chats = goldens.root["conversations"]?.object.map { Array($0).compactMap { $0.value.array } } ?? []
        let variables = goldens.root["context"]?.object ?? [:]
        var limits = TemplateLimits()
        limits.steps = 5_000
        (limits.stepsPerMessage, limits.stepsPerByte) = (100, 1)
        var random = SplitMix(state: 42)
        let pieces = [
            "{{", "}}", "{%", "%}", "{#", "#}", "-", "'", "\"", "(", ")", "[", "]", "|", ".", "if", "for", "else",
            "endif", "\\", "\u{0}", "é", "\n", "**", "99999999999999999999",
        ]
        for round in 0..<2000 {
            var text = Array(
                (round % 3 == 0 ? families : statements)[
                    random.below(round % 3 == 0 ? families.count : statements.count)
                ].utf8)
            for _ in 0...random.below(4) { mutate(&text, pieces, &random) }
            let source = String(decoding: text, as: UTF8.self)
            guard var template = try? ChatTemplate(source: source) else { continue }
            template.limits = limits
            let rendering = try? template.render(
                messages: chats[random.below(chats.count)], tools: random.below(2) == 0 ? goldens.root["tools"] : nil,
                addsGenerationPrompt: random.below(2) == 0, variables: variables)
            _ = try? rendering?.assistantSpans(
                .all, header: "<|im_start|>assistant\n", endOfTurn: ["<|im_end|>", "\n"])
            for span in rendering?.messageSpans ?? [] {
                #expect(span.range.upperBound <= rendering?.text.utf8.count ?? 0)
            }
        }
    }

    private func mutate(_ text: inout [UInt8], _ pieces: [String], _ random: inout SplitMix) {
        guard !text.isEmpty else { return }
        let at = random.below(text.count), end = min(text.count, at + 1 + random.below(24))
        switch random.below(5) {
        case 0: text.removeSubrange(at..<end)
        case 1: text.insert(contentsOf: text[at..<end], at: random.below(text.count))
        case 2: text.insert(contentsOf: pieces[random.below(pieces.count)].utf8, at: at)
        case 3: text[at] = UInt8(truncatingIfNeeded: random.below(256))
        default: text.swapAt(at, random.below(text.count))
        }
    }
}

/// A small generator with a fixed sequence.
private struct SplitMix {
    var state: UInt64

    mutating func below(_ bound: Int) -> Int {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return Int((z ^ (z >> 31)) % UInt64(max(1, bound)))
    }
}
