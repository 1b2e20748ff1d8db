#!/usr/bin/env python3
"""Writes Sources/MartletData/Tokenizer/CompatibilityMappings.swift from Python's unicodedata (12.0 or later).

The table maps each character to its NFKD form where that differs from NFD. Successive characters with successive
one-character forms are one entry, `FIRST-LAST:FORM`. Usage: unicode_compatibility.py > CompatibilityMappings.swift
"""
import sys
import unicodedata

HEAD = '''/// What NFKC and NFKD replace: characters to their compatibility form (UnicodeData.txt of Unicode {version}).
/// Written by tools/goldens/unicode_compatibility.py.
enum CompatibilityMappings {{
    /// Character -> its form, as UTF-8.
    static let table: [UInt32: [UInt8]] = {{
        var table: [UInt32: [UInt8]] = [:]
        for entry in entries.split(whereSeparator: {{ $0 == " " || $0 == "\\n" }}) {{
            let sides = entry.split(separator: ":")
            guard sides.count == 2 else {{ continue }}
            let range = sides[0].split(separator: "-").compactMap {{ UInt32($0, radix: 16) }}
            let form = sides[1].split(separator: "+").compactMap {{ UInt32($0, radix: 16) }}
            guard let first = range.first, let last = range.last, let head = form.first else {{ continue }}
            for character in first...last {{
                table[character] = utf8(head + character - first) + form.dropFirst().flatMap(utf8)
            }}
        }}
        return table
    }}()

    private static let entries = """
'''


def entries():
    rows = []
    for code in range(0x80, 0x30000):
        if not 0xD800 <= code <= 0xDFFF:
            form = unicodedata.normalize("NFKD", chr(code))
            if form != unicodedata.normalize("NFD", chr(code)):
                rows.append((code, [ord(c) for c in form]))
    i = 0
    while i < len(rows):
        code, form = rows[i]
        n = 1
        while i + n < len(rows) and len(form) == 1 and rows[i + n] == (code + n, [form[0] + n]):
            n += 1
        yield f"{code:X}" + (f"-{code + n - 1:X}" if n > 1 else "") + ":" + "+".join(f"{c:X}" for c in form)
        i += n


def main():
    out = [HEAD.format(version=unicodedata.unidata_version)]
    line = ""
    for entry in entries():
        if len(line) + 1 + len(entry) > 108:
            out.append("        " + line + "\n")
            line = ""
        line += (" " if line else "") + entry
    out.append("        " + line + '\n        """\n}\n')
    sys.stdout.write("".join(out))


main()
