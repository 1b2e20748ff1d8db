"""Makes Tests/DataTests/TemplateGoldens/cases.json: templates, contexts and what transformers' renderer makes of them.

Run:     python tools/goldens/templates.py            (transformers 5.23, jinja2 3.1.6)
Options: --fuzz N (random expressions kept, default 300), --seed S, --out FILE

A case is {"name", "template", "messages", "tools", "prompt", "variables", "expected" or "error", "spans"}: `spans` are
the character ranges of `{% generation %}` blocks, `error` the message of an expected refusal. "@name" refers to what
several cases share, and "template_variables" names the entries of "context" that are variables (true: all).
"""

import argparse
import datetime as real_datetime
import json
import pathlib
import random
import re

from transformers.utils import chat_template_utils as ctu

NOW = real_datetime.datetime(2026, 3, 7, 14, 5, 9)


class FixedDatetime(real_datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


ctu.datetime = FixedDatetime


def render(template, messages=(), tools=None, prompt=False, variables=None):
    """Returns (text, spans) or raises."""
    tracked = re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None
    text, spans = ctu.render_jinja_template(
        [list(messages)], tools=tools, chat_template=template, add_generation_prompt=prompt,
        return_assistant_tokens_mask=tracked, **(variables or {}))
    return text[0], [list(s) for s in spans[0] if s[0] < s[1]] if tracked else []


def case(name, template, messages=(), tools=None, prompt=False, variables=None):
    record = {"name": name, "template": template}
    if messages:
        record["messages"] = list(messages)
    if tools is not None:
        record["tools"] = tools
    if prompt:
        record["prompt"] = True
    if variables:
        record["variables"] = variables
    try:
        text, spans = render(template, messages, tools, prompt, variables)
        text.encode("utf-8")
        record["expected"] = text
        if spans:
            record["spans"] = spans
    except RecursionError:
        raise
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
    return record


# --- one small template a feature ------------------------------------------------------------------------------------

CONTEXT = {
    "n": 7, "m": -3, "f": 2.5, "z": 0, "big": 123456789012, "t": True, "nope": None, "s": "Hello World", "e": "",
    "u": "Käse 漢字 🙂", "lines": "one\n  two\n\nthree", "l": [3, 1, 2], "ls": ["b", "a", "C"], "el": [],
    "d": {"b": 1, "a": {"x": [1, 2]}, "items": "key", "C": 3}, "ed": {},
    "users": [
        {"name": "Zoe", "age": 30, "tags": ["x"], "job": {"title": "dev"}},
        {"name": "adam", "age": 25, "tags": [], "job": {"title": "Ops"}},
        {"name": "Bob", "age": 30, "job": {"title": "dev"}},
    ],
    "nested": [1, [2, [3, "a'b"]], {"k": None, "f": 1.0, "q": "say \"hi\" 'x'"}],
}

EXPRESSIONS = """
n + 2 | n - 10 | n * m | n / 2 | n // 2 | m // 2 | n % 4 | m % 4 | 7 % -3 | -7 // 2 | 7.5 // 2 | -7.5 % 2 | 2 ** 10
2 ** -1 | 2 ** 3 ** 2 | -2 ** 2 | 1 / 3 | 10 / 5 | 1e3 | 1.5e-7 | 1e16 | 1e15 | 123456789.123 | 0.1 + 0.2 | -0.0 | 1_000 | 0x1F
0b101 | 0o17 | n / z | n // z | n % z | n + s | s + n | s ~ n | n ~ f ~ nope ~ t | s * 2 | 2 * s | l * 2 | s * -1 | t + t | t * 3
1 < 2 < 3 | 1 < 3 < 2 | 1 == 1.0 | 1 == t | 'a' < 'b' | [1, 2] < [1, 3] | [1] == [1.0] | (1, 2) == [1, 2] | nope == none
none < 1 | 'a' < 1 | 1 in l | 9 not in l | 'ell' in s | 'x' in s | 1 in s | 'a' in d | 'x' not in d | 1 in n
not t | not e | not z | t and 0 | 0 or 'x' | e or none | t and s | n if t else m | n if z else m | n if z | (n if z) is defined
not n == 7 | not 'x' in s | n is odd | n is even | n is divisibleby 7 | n is divisibleby(2) | n is not odd
missing | missing is defined | missing is undefined | missing.x | missing['x'] | missing + 1 | missing ~ 'x' | missing == missing2
missing == '' | missing in l | missing == none | missing | default('D') | e | default('D') | e | default('D', true) | nope | d('D')
missing | length | missing | list | missing | join | missing | upper | missing | tojson | missing | int | missing is iterable
missing is none | missing | string | d.missing | d.missing.x | d['missing'] | l[9] | l[-1] | l[-4] | l['x'] | s[0] | s[-1] | s[99] | u[5] | u[7]
s[1:] | s[:3] | s[::2] | s[::-1] | s[-3:] | s[5:2] | u[1:3] | u[::-1] | l[1:] | l[::-1] | l[:-1] | l[::2] | l[5:] | l[-2:] | l[2:0:-1] | l[:2:-1]
s[::0] | n[0] | n[1:] | d.b | d['b'] | d.a.x[1] | d.a['x'][0] | d.items is callable | d['items'] | d.C | d.keys() | d.values() | d.items() | d.items() | list
d.keys() | list | d.get('b') | d.get('q') | d.get('q', 5) | d.get('a').x | d | l | nested | ed | el | () | (1,) | (1, 2) | [] | {} | {'a': 1, 'b': [none, true]}
{1: 2, 'x': 3.0} | {'a': 1, 'a': 2} | 'it\\'s' | "q\\"q" | 'tab\\there' | 'a' 'b' | '\\x41\\u00e9\\n' | 'back\\\\slash' | '\\q'
n.foo | s.foo | s.upper | length | l.append(1) | d.update({}) | d.pop('b') | l.foo | t.foo | (1, 2).foo | s.nope()
l | length | s | length | u | length | d | length | n | length | l | first | l | last | el | first | el | last | s | first | s | last | u | last
l | sort | l | sort(reverse=true) | ls | sort | ls | sort(case_sensitive=true) | ls | sort(true) | users | map(attribute='name') | list
users | sort(attribute='age') | map(attribute='name') | list | users | sort(attribute='age,name') | map(attribute='name') | join(',')
users | sort(attribute='age', reverse=true) | map(attribute='name') | join('-') | [1, 'a'] | sort | nested | sort | users | sort
l | min | l | max | el | min | ls | min | ls | max | ls | max(case_sensitive=true) | users | max(attribute='age') | users | min(attribute='name')
l | sum | users | sum(attribute='age') | el | sum | l | sum(start=10) | ls | sum | [0.1, 0.2, 1] | sum | l | reverse | list | s | reverse | d | reverse | list
l | unique | list | ['a', 'A', 'b'] | unique | list | ['a', 'A', 'b'] | unique(true) | list | users | unique(attribute='age') | map(attribute='name') | list
l | join | l | join(', ') | l | join(d='-') | users | join('; ', attribute='name') | s | join('.') | d | join(',') | n | join
l | map('string') | list | ls | map('upper') | join | ls | map('replace', 'a', 'z') | list | users | map(attribute='job.title') | list
users | map(attribute='tags.0') | list | users | map(attribute='tags.0', default='-') | list | users | map(attribute='zip', default=0) | list | l | map('nofilter') | list
users | selectattr('tags') | map(attribute='name') | list | users | rejectattr('tags') | map(attribute='name') | list
users | selectattr('age', 'equalto', 30) | list | length | users | selectattr('age', '>', 26) | map(attribute='name') | list
users | selectattr('name', 'in', ['Bob', 'Zoe']) | map(attribute='age') | list | users | rejectattr('job.title', 'eq', 'dev') | map(attribute='name') | list
users | selectattr('tags', 'undefined') | map(attribute='name') | list | users | selectattr('tags', 'defined') | list | length
l | select('odd') | list | l | reject('odd') | list | l | select('>', 1) | list | [0, 1, '', 'x'] | select | list | [0, 1, ''] | reject | list | l | select('nope') | list
(l | select('odd')) is iterable | (el | select) is true | 'yes' if el | select else 'no' | (l | map('string')) | length | (l | map('string'))[0]
(l | select('odd') | first) | (l | select('odd') | last) | (l | select) is sequence | l | select | tojson
f | round | 2.567 | round(2) | 2.5 | round | 3.5 | round | 2.675 | round(2) | 42.55 | round(1, 'floor') | 42.51 | round(1, 'ceil') | n | round | 1234 | round(-2) | 1250 | round(-2)
-2.5 | round | 2.4 | round(method='ceil') | s | round | -5 | abs | f | abs | (-2.5) | abs | s | abs | '42' | int | '4.7' | int | 'x' | int | 'x' | int(-1) | ' 12 ' | int
'ff' | int(base=16) | '0x1A' | int(0, 16) | '1_000' | int | none | int | 3.99 | int | -3.99 | int | t | int | '3.5' | float | 'x' | float | 'x' | float(1.5) | n | float | '1e3' | float | 'inf' | float | l | int
s | upper | s | lower | 'hELLO wORLD' | capitalize | s | trim | '  x ' | trim | 'xxaxx' | trim('x') | 'ß' | upper | n | upper
'hello wORLD-foo (bar' | title
s | replace('o', '0') | s | replace('o', '0', 1) | 'aaa' | replace('', '-') | s | replace('l', '') | n | replace(7, 8) | s | center(21) | 'ab' | center(5) | 'abc' | center(6)
lines | indent | lines | indent(2, true) | lines | indent(width=2, blank=true) | lines | indent('> ') | lines | indent(2, first=true, blank=true) | e | indent | n | indent
s | truncate(5) | s | truncate(8, true) | s | truncate(9, false, '!', 0) | s | truncate(5, leeway=0) | s | truncate(2) | s | wordcount | lines | wordcount
s | string | n | string ~ 'x' | l | string | nope | string | s | list | d | list | u | list | n | list | 'a b&c/ü' | urlencode
d | dictsort | d | dictsort(true) | d | dictsort(reverse=true) | {'x': 2, 'y': 1} | dictsort(by='value') | {'x': 2, 'y': 1} | dictsort(false, 'value', true) | d | items | list | missing | items | list | l | items | list
[1, 2, 3, 4, 5] | batch(2) | list | [1, 2, 3, 4, 5] | batch(2, 0) | list | [1, 2, 3, 4, 5] | slice(2) | list | [1, 2, 3, 4, 5] | slice(3, 'x') | list | s | batch(4) | map('join') | list
users | groupby('age') | map('first') | list | users | groupby('job.title') | map('last') | map('length') | list | s | attr('upper') is callable | d | attr('b') is defined
nested | tojson | d | tojson | u | tojson | u | tojson(ensure_ascii=true) | d | tojson(indent=2) | nested | tojson(indent=4) | ed | tojson(indent=2) | el | tojson(indent=1) | nested | tojson(separators=(',', ':'))
d | tojson(sort_keys=true) | d | tojson(indent=2, sort_keys=true) | (1, 'a') | tojson | 'a"b\\\\c/\\n\\t</script>' | tojson | 1e20 | tojson | 1.0 | tojson | nope | tojson | {1: 2, none: 3, true: 4, 1.5: 6} | tojson | range(3) | tojson | d.items() | tojson | '\\x7f\\x1f' | tojson | '\\x7f\\U0001F600' | tojson(ensure_ascii=true) | l | tojson(indent='\\t') | l | tojson(true) | l | tojson(nope=1)
s | nofilter | n is nofilter | s is nofilter(1) | s is string | n is string | n is number | t is number | f is number | s is number | n is integer | t is integer | f is float | n is float | t is boolean | n is boolean
t is true | n is true | z is false | false is false | nope is none | nope is not none | d is mapping | l is mapping | l is sequence | s is sequence | d is sequence | n is sequence | l is iterable | s is iterable | n is iterable | d is iterable
s is lower | 'abc' is lower | 'ABC1' is upper | '1' is upper | range is callable | s is callable | n is eq 7 | n is eq(7) | n is ne 7 | n is gt 3 | n is lt(3) | n is ge 7 | n is le 6 | n is equalto 7 | n is sameas n | t is sameas true | 1 is sameas true | n is in [7, 8] | n is not in [7] | 'a' is in 'abc' | 'upper' is filter | 'foo' is filter | 'odd' is test | s is escaped
s.startswith('Hell') | s.startswith(('x', 'H')) | s.endswith('ld') | s.startswith('World', 6) | s.split() | s.split('o') | s.split('o', 1) | s.split('o', maxsplit=1) | s.rsplit('o', 1) | ' a  b c '.split() | ' a  b c '.split(none, 1) | 'a,b,,c'.split(',') | ''.split(',') | ''.split() | s.split('') | 'a  b c'.rsplit(none, 1) | lines.splitlines() | 'a\\r\\nb\\n'.splitlines() | 'a\\nb\\n'.splitlines(true)
'  x '.strip() ~ '|' | '  x '.lstrip() ~ '|' | '  x '.rstrip() ~ '|' | 'xyaxy'.strip('xy') | 'xyaxy'.lstrip('xy') | 'xyaxy'.rstrip('xy') | '\\n\\na\\n'.strip('\\n') | s.upper() | s.lower() | s.title() | "they're bill's".title() | s.capitalize() | s.swapcase() | s.replace('o', '0') | s.replace('o', '0', 1) | s.find('o') | s.find('zz') | s.rfind('o') | u.find('字') | s.index('o') | s.index('zz') | s.count('o') | 'aaa'.count('aa') | ''.count('') | s.find('o', 5)
'-'.join(ls) | '-'.join(l) | ''.join([]) | s.partition(' ') | s.partition('zz') | 'a.b.c'.rpartition('.') | s.removeprefix('Hello') | s.removesuffix('World') | '42'.zfill(5) | '-4'.zfill(5) | 'ab'.ljust(4) ~ '|' | 'ab'.rjust(4, '*') | 'ab'.center(5, '*') | 'abc'.center(6, '*') | '12'.isdigit() | ''.isdigit() | 'ab'.isalpha() | 'a1'.isalnum() | ' '.isspace() | 'Ab'.istitle() | 'ab'.islower() | 'AB'.isupper() | '½'.isnumeric() | '²'.isdigit() | '²'.isdecimal() | 'é'.isascii() | 'a\\tb'.expandtabs(4) | s.casefold()
l.index(1) | l.index(9) | l.count(3) | (1, 2, 1).count(1) | d.copy() | l.copy()
'%s is %d' % (s, n) | '%s' % n | '%5d|%-5d|%05d|%+d' % (n, n, n, n) | '%.2f %8.3f %e %g' % (f, f, f, f) | '%x %X %o %#x' % (255, 255, 8, 255) | '%r %s' % ('a', 'a') | '%%' % () | '%d%%' % n | '%(a)s-%(b)05.1f' % {'a': 1, 'b': 2.25} | '%s %s' % (1,) | '%s' % (1, 2) | '%d' % 'x' | '%d' % 2.9 | '%10s|%-10s|%.2s' % (s, 'a', 'abc') | '%c%c' % (65, 'b') | '%*d' % (5, n) | '%s' % l | '%s' % ((1, 2),) | '%i' % t
'{} {}'.format(1, s) | '{0} {1} {0}'.format('a', 'b') | '{x} {y}'.format(x=1, y=2) | '{:>8}|{:<8}|{:^8}|{:*^7}'.format('a', 'b', 'c', 'd') | '{:05d} {:+d} {:,} {:x} {:#b}'.format(n, n, big, 255, 5) | '{:.2f} {:10.3f} {:e} {:g} {:%}'.format(f, f, f, f, 0.25) | '{!r} {!s}'.format('a', 'a') | '{{}} {}'.format(1) | '{0[a]} {0[b]}'.format(d) | '{0[0]} {1.b}'.format(l, d) | '{} {}'.format(1) | '{:d}'.format('x') | '{:{w}}|'.format('a', w=4) | '{:,.2f}'.format(1234567.891) | '{:s}'.format(1) | '{:08.2f}'.format(-3.14159) | '{:<06d}'.format(42)
'%s-%s' | format(1, 2) | '%(a)s' | format(a=3) | 'x' | format | '<a href="x">' | e | '<&>' | escape | '<b>' | safe
range(3) | range(3) | list | range(1, 10, 3) | list | range(5, 0, -2) | list | range(3)[1] | range(10)[2:4] | list | range(0) | list | 2 in range(3) | range(3) | length | range(200000) | list | length | range(1, 2, 0) | range('a')
dict(a=1, b=2) | dict(d, z=1) | dict([('a', 1)]) | dict({'a': 1}, a=2) | namespace(x=1).x | namespace(_x=1) | joiner(',') is callable | cycler('a', 'b').next()
strftime_now('%Y-%m-%d') | strftime_now('%d %b %Y') | strftime_now('%A, %B %d, %Y at %I:%M %p') | strftime_now('%j %y %H:%M:%S %% %-d') | raise_exception('no way') | raise_exception()
[1, 2] + [3] | (1, 2) + (3,) | [1] + (2,) | l + none | -s | +n | -f | -t | --n | not not n | n.__class__ | s.__len__ | d.__class__ | l | map(attribute='__class__') | list
[[1, 2], [3]] | map('sum') | list | [[1, 2], [3]] | sum(start=[]) | 'abc' | map('upper') | list | [1, 2, 3] | map('string') | map('center', 3) | list | ['x', 'y'] | map('default', 'z') | list
u | upper | u.split(' ') | u | tojson(ensure_ascii=true) | 'é' == 'é' | 'e\\u0301' == '\\u00e9' | 'e\\u0301' | length | ('e\\u0301' ~ 'x') | tojson | '\\u200b'.strip() | length | '\\u00a0x\\u2003'.strip() | ['\\u200b', '\\xa0', '\\x00'] | 'ﬁ'.upper() | 'ǆ'.title()
1.0 | 1e100 | 1e-5 | 0.0001 | 123456789012345680.0 | 1e22 | 5e-324 | 1.7976931348623157e308 | 100000.0 * 10 | 3.0 == 3 | 1e400 | 3.0 // 2 | 3.0 % 2 | 2 ** 0.5 | 4 ** 0.5
""".strip()


def split_expressions(text):
    """A line holds expressions; ` | ` separates them unless the right side is a filter (decided by compiling)."""
    known = set(ctu._compile_jinja_template("").environment.filters)
    for line in text.splitlines():
        parts = line.split(" | ")
        current = parts[0]
        for part in parts[1:]:
            word = re.match(r"[a-z]+", part)
            follows = re.match(r"[a-z]+(\(.*\))?( .*)?(\[0\])?\)?.*$", part)
            is_filter = word and (word.group() in known or word.group().startswith("nofilter")) and follows \
                and part not in ("e", "d") and not part.startswith(("d.", "d[", "e or", "e(")) or \
                (current.count("(") > current.count(")") or current.count("[") > current.count("]"))
            if is_filter:
                current += " | " + part
            else:
                yield current
                current = part
        yield current


STATEMENTS = {
    "if": "{% if n > 5 %}big{% elif n > 2 %}mid{% else %}small{% endif %}",
    "if_elif": "{% if e %}A{% elif z %}B{% elif t %}C{% else %}D{% endif %}",
    "if_tuple": "{% if 0, 0 %}tuple is true{% endif %}",
    "colon": "{% if t: %}x{% endif %}{% for i in l: %}{{ i }}{% endfor %}",
    "for": "{% for i in l %}{{ i }},{% endfor %}",
    "for_else": "{% for i in el %}x{% else %}empty{% endfor %}|{% for i in l %}{% else %}empty{% endfor %}",
    "for_undefined": "{% for i in missing %}x{% else %}none{% endfor %}",
    "for_none": "{% for i in nope %}x{% endfor %}",
    "for_number": "{% for i in n %}x{% endfor %}",
    "for_string": "{% for c in u %}[{{ c }}]{% endfor %}",
    "for_dict": "{% for k in d %}{{ k }}{% endfor %} {% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in d | items %}{{ k }}{% endfor %}",
    "for_filter": "{% for i in range(10) if i is odd %}{{ loop.index }}:{{ i }}{{ ',' if not loop.last }}{% endfor %}",
    "for_filter_loop": "{% for i in l if loop.first %}{{ i }}{% endfor %}",
    "for_nested_tuple": "{% for a, (b, c) in [(1, (2, 3)), (4, (5, 6))] %}{{ a }}{{ b }}{{ c }} {% endfor %}",
    "for_unpack_error": "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}",
    "loop_variables": "{% for i in l %}{{ loop.index }} {{ loop.index0 }} {{ loop.revindex }} {{ loop.revindex0 }} {{ loop.first }} {{ loop.last }} {{ loop.length }} {{ loop.depth }} {{ loop.depth0 }} {{ loop.previtem }} {{ loop.nextitem }} {{ loop.cycle('a', 'b') }} {{ loop.changed(i > 1) }}\n{% endfor %}",
    "loop_previtem": "{% for m in users %}{% if loop.previtem is defined and loop.previtem.age == m.age %}same{% else %}new{% endif %} {% if loop.nextitem is not defined %}end{% endif %}{% endfor %}",
    "loop_outside": "{{ loop.index }}",
    "loop_over_generator": "{% for x in users | map(attribute='name') %}{{ loop.length }}{{ loop.revindex }}{{ x }}{{ loop.last }} {% endfor %}",
    "loop_unknown": "{% for i in l %}[{{ loop.foo }}]{% endfor %}",
    "nested_loops": "{% for i in l %}{% set outer = loop %}{% for j in l %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}",
    "recursive": "{% for x in [1, [2, [3, 4]], 5] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}",
    "not_recursive": "{% for x in [[1]] %}{{ loop(x) }}{% endfor %}",
    "break": "{% for i in range(10) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}!",
    "continue": "{% for i in range(6) %}{% if i is even %}{% continue %}{% endif %}{{ i }}{% else %}E{% endfor %}",
    "break_nested": "{% for i in range(3) %}{% for j in range(3) %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}",
    "break_outside": "{% break %}",
    "set": "{% set x = 1 %}{% set y, z2 = x + 1, 'q' %}{{ x }}{{ y }}{{ z2 }}",
    "set_scope_loop": "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}",
    "set_scope_if": "{% set x = 1 %}{% if t %}{% set x = 2 %}{% endif %}{{ x }}",
    "set_in_loop_if": "{% for i in l %}{% if loop.first %}{% set first = i %}{% endif %}[{{ first }}]{% endfor %}{{ first is defined }}",
    "set_over_variable": "{% if e is defined %}{% set n = n + 1 %}{% endif %}{{ n }}{% for i in l %}{% set n = i %}{% endfor %}{{ n }}",
    "set_unpack_error": "{% set a, b = 1, 2, 3 %}",
    "set_unpack_string": "{% set a, b = 'xy' %}{{ b }}{{ a }}",
    "set_block": "{% set x %}a{{ n }}b{% endset %}[{{ x }}]{{ x | length }}",
    "set_block_filter": "{% set x | upper | replace('B', '-') %}ab{{ n }}{% endset %}{{ x }}",
    "set_block_scope": "{% set y = 1 %}{% set x %}{% set y = 2 %}{{ y }}{% endset %}{{ x }}{{ y }}",
    "set_tuple_paren": "{% set (a, b) = (1, 2) %}{{ a }}{{ b }}",
    "set_keyword": "{% set none = 1 %}",
    "set_number": "{% set 1 = 1 %}",
    "namespace": "{% set ns = namespace(x=0, found=false) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.found }}{{ ns.missing is defined }}",
    "namespace_dict": "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns['b'] }}",
    "namespace_tuple": "{% set ns = namespace() %}{% set ns.a, ns.b = 1, 2 %}{{ ns.a + ns.b }}",
    "namespace_not": "{% set d.x = 1 %}",
    "namespace_private": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "macro": "{% macro f(a, b=2, c='x') %}<{{ a }}{{ b }}{{ c }}>{% endmacro %}{{ f(1) }}{{ f(1, 5) }}{{ f(1, c='y') }}{{ f(b=1, a=0) }}{{ f() }}",
    "macro_default_expression": "{% macro f(a, b=a ~ '!') %}{{ b }}{% endmacro %}{{ f('x') }}",
    "macro_recursive": "{% macro f(x) %}{% if x is mapping %}{ {%- for k, v in x.items() %}{{ k }}:{{ f(v) }}{% endfor -%} }{% elif x is string %}'{{ x }}'{% elif x is iterable %}[{% for y in x %}{{ f(y) }},{% endfor %}]{% else %}{{ x }}{% endif %}{% endmacro %}{{ f({'a': [1, {'b': 'c'}], 'd': 2}) }}",
    "macro_scope": "{% set g = 'global' %}{% macro f() %}{{ g }}{{ local is defined }}{% endmacro %}{% for local in [1] %}{{ f() }}{% endfor %}{% set g = 'changed' %}{{ f() }}",
    "macro_varargs": "{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, 3, k=4) }}",
    "macro_too_many": "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}",
    "macro_unknown_keyword": "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(q=2) }}",
    "macro_star": "{% macro f(a, b, c=0) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(*[1, 2], **{'c': 3}) }}",
    "macro_value": "{% macro f(a) %}{{ a }}{% endmacro %}{{ f('x') | upper }}{{ f('x') ~ 'y' }}{{ f(3) + '4' }}{{ f('') is string }}",
    "macro_set": "{% macro f(a) %}{% set a = a * 2 %}{{ a }}{% endmacro %}{{ f(4) }}{{ a is defined }}",
    "macro_uses_later": "{% macro f() %}{{ h() }}{% endmacro %}{% macro h() %}later{% endmacro %}{{ f() }}",
    "macro_whitespace": "{%- macro f(a) -%}\n  {{ a }}\n{%- endmacro -%}\n[{{ f(1) }}]",
    "macro_order": "{% macro f(a=1, b) %}{% endmacro %}",
    "call": "{% macro box(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call box('b') %}in {{ n }}{% endcall %}",
    "call_arguments": "{% macro each(xs) %}{% for x in xs %}{{ caller(x, loop.index) }};{% endfor %}{% endmacro %}{% call(x, i) each(l) %}{{ i }}={{ x }}{% endcall %}",
    "call_not_call": "{% call n %}x{% endcall %}",
    "caller_missing": "{% macro f() %}{{ caller is defined }}{% endmacro %}{{ f() }}",
    "filter_block": "{% filter upper %}abc {{ s }}{% endfilter %}{% filter replace('a', 'b') | trim %} aa {% endfilter %}",
    "with": "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}{% with %}x{% endwith %}",
    "print": "{% print n %}",
    "raw": "{% raw %}{{ not }} {% evaluated %} {# at all #}{% endraw %}!",
    "raw_strip": "a {%- raw -%}  {{ x }}  {%- endraw -%} b",
    "raw_lines": "a\n  {% raw %}\n  {{ x }}\n  {% endraw %}\nb",
    "raw_open": "{% raw %}abc",
    "comment": "a{# comment {{ x }} {% if %} #}b{#- strip -#}  c",
    "comment_lines": "a\n{# one #}\nb\n  {# two #}  \nc {# three #}\nd",
    "comment_open": "a{# b",
    "trim_blocks": "{% if t %}\na\n{% endif %}\nb\n\n{% if t %}\n\nc\n{% endif %}",
    "lstrip_blocks": "  {% if t %}\n    a\n  {% endif %}\n\t{% for i in l %}\n  {{ i }}\n  {% endfor %}\nx {% if t %}y{% endif %}",
    "lstrip_plus": "a\n  {%+ if t %}b{% endif +%}\nc\n  {%+ endif",
    "keep_plus": "a\n  {%+ if t %}b{% endif +%}\nc",
    "minus": "a \n {%- if t -%} \n b \n {%- endif -%} \n c {{- n -}} d",
    "minus_variable": "  {{- ' x ' -}}  \n y",
    "variable_newline": "{{ n }}\n{{ n }}\n\n{{ n }}",
    "variable_indent": "  {{ n }}\n  {{- n }}",
    "trailing_newline": "a\n",
    "trailing_newlines": "a\n\n",
    "only_newline": "\n",
    "carriage_returns": "a\r\nb{% if t %}\r\nc{% endif %}\rd\r\n",
    "tabs_and_spaces": "a\n \t {% if t %}x{% endif %} \t\n",
    "block_after_text": "text {% if t %}\nx{% endif %}",
    "two_blocks_line": "  {% if t %}{% if t %}\n  x\n  {% endif %}{% endif %}\ny",
    "space_then_variable": "   {% if t %}{{ n }}{% endif %}   \n",
    "strip_unicode_space": "a\u00a0\u2003{%- if t %}b{% endif -%}\u3000c",
    "minus_then_newline": "{% set x = 1 -%}\n\n  a",
    "empty": "",
    "braces": "{ { } } {{ '{{' }} {{ '}}' }} {{ {'a': {'b': 1}} }} %} }}",
    "nested_braces": "{{ {'a': {'b': {'c': 1}}}.a.b.c }}{{ [[{'x': [1]}]][0][0].x[0] }}",
    "string_with_tag": "{{ '{% if %}' }}{{ \"#}\" }}",
    "unclosed": "{{ n",
    "unclosed_block": "{% if t",
    "unclosed_if": "{% if t %}x",
    "unclosed_string": "{{ 'abc }}",
    "wrong_end": "{% if t %}{% endfor %}",
    "end_alone": "{% endif %}",
    "unknown_tag": "{% frobnicate %}",
    "empty_expression": "{{ }}",
    "bad_operator": "{{ n & 1 }}",
    "bad_syntax": "{{ n n }}",
    "bad_bracket": "{{ (n] }}",
    "trailing_operator": "{{ n + }}",
    "double_test": "{{ n is odd is even }}",
    "elif_after_else": "{% if t %}{% else %}{% elif t %}{% endif %}",
    "include": "{% include 'x' %}",
    "extends": "{% extends 'x' %}",
    "do": "{% do l.append(1) %}",
    "generation": "a{% generation %}b{{ n }}{% endgeneration %}c{% generation %}d{% endgeneration %}",
    "generation_trim": "x\n  {%- generation %}\n  a\n  {% endgeneration %}\ny",
    "generation_scope": "{% generation %}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q is defined }}",
    "generation_loop": "{% for i in l %}<{% generation %}{{ i }}.{% endgeneration %}>{% endfor %}",
    "multiline_expression": "{{ n\n  + 1\n  if t\n  else 2 }}",
    "chained_condition": "{{ 'a' if z else 'b' if e else 'c' }}{{ ('x' if t) ~ 'y' }}",
    "condition_without_else": "[{{ 'a' if z }}]",
    "condition_without_else_use": "{{ ('a' if z).x }}",
    "dict_methods_beat_keys": "{{ d.items is string }}{{ d['items'] is string }}{% for k, v in {'items': 1, 'keys': 2}.items() %}{{ k }}{{ v }}{% endfor %}",
    "generator_once": "{% set g = l | select %}{{ g | list }}{{ g | list }}{{ 'still true' if g }}",
    "generator_loop_once": "{% set g = l | map('string') %}{% for x in g %}{{ x }}{% endfor %}{% for x in g %}{{ x }}{% else %}gone{% endfor %}",
    "joiner": "{% set c = joiner('; ') %}{% for i in l %}{{ c() }}{{ i }}{% endfor %}",
    "cycler": "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}",
    "unicode_names": "{% set größe = 3 %}{{ größe }}",
    "private_variable": "{% set _x = 1 %}{{ _x }}",
    "tuple_output": "{{ 1, 'a' }}",
    "call_result_methods": "{{ s.split(' ')[0].upper().lower()[1:] | upper }}",
    "attribute_number": "{{ l.0 }}{{ nested.1.1.1 }}",
    "filter_precedence": "{{ -5 | abs }}{{ 1 + 2 | string | length }}{{ 'a' ~ 'b' | upper }}{{ not e | length }}{{ s | length > 3 and n }}",
    "test_precedence": "{{ n + 1 is even }}{{ not n is even }}{{ n is odd and t is true }}{{ e is string or n }}{{ 2 is even == true }}",
    "concat_precedence": "{{ 1 + 2 ~ 3 + 4 }}",
    "power_precedence": "{{ -2 ** 2 }}{{ 2 ** 3 ** 2 }}{{ 2 ** -1 }}{{ 2 * 3 ** 2 }}",
    "compare_chain": "{{ 1 < n < 10 }}{{ 1 < n > 3 == true }}{{ 3 in l in [l] }}",
    "keyword_arguments": "{{ s.split(sep='o') }}",
    "positional_after_keyword": "{{ f(a=1, 2) }}",
    "trailing_commas": "{{ [1, 2,] }}{{ (1, 2,) }}{{ {'a': 1,} }}{{ range(3,) | list }}",
    "large_block": "{% for i in range(50) %}{{ i }}{% if i % 10 == 9 %}\n{% endif %}{% endfor %}",
}


# --- imitations of published templates -------------------------------------------------------------------------------

QWEN3 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "# Tools\n\nCall these if you need them:\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thoughts = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and thoughts) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

QWEN3_CODER = r"""{% macro extra_keys(obj, known) %}
    {%- if obj is mapping %}
        {%- for key in obj | list if key not in known %}
            {%- if obj[key] is mapping or (obj[key] is iterable and obj[key] is not string) %}
                {{- '\n<' ~ key ~ '>' ~ (obj[key] | tojson | safe) ~ '</' ~ key ~ '>' }}
            {%- else %}
                {{- '\n<' ~ key ~ '>' ~ (obj[key] | string) ~ '</' ~ key ~ '>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{% set tools = [] %}{% endif %}
{%- if system_message is defined %}
    {{- "<|im_start|>system\n" + system_message }}
{%- else %}
    {%- if tools is iterable and tools | length > 0 %}{{- "<|im_start|>system\nYou write code." }}{% endif %}
{%- endif %}
{%- if tools is iterable and tools | length > 0 %}
    {{- "\n\n# Tools\n<tools>" }}
    {%- for tool in tools %}
        {%- if tool.function is defined %}{% set tool = tool.function %}{% endif %}
        {{- "\n<function>\n<name>" ~ tool.name ~ "</name>" }}
        {%- if tool.description is defined %}{{- '\n<description>' ~ (tool.description | trim) ~ '</description>' }}{% endif %}
        {{- '\n<parameters>' }}
        {%- if tool.parameters is defined and tool.parameters is mapping and tool.parameters.properties is defined and tool.parameters.properties is mapping %}
            {%- for param_name, param_fields in tool.parameters.properties|items %}
                {{- '\n<parameter>\n<name>' ~ param_name ~ '</name>' }}
                {%- if param_fields.type is defined %}{{- '\n<type>' ~ (param_fields.type | string) ~ '</type>' }}{% endif %}
                {{- extra_keys(param_fields, ['name', 'type']) }}
                {{- '\n</parameter>' }}
            {%- endfor %}
        {%- endif %}
        {{- extra_keys(tool.parameters, ['type', 'properties']) }}
        {{- '\n</parameters>\n</function>' }}
    {%- endfor %}
    {{- "\n</tools>" }}
{%- endif %}
{%- if system_message is defined or (tools is iterable and tools | length > 0) %}{{- '<|im_end|>\n' }}{% endif %}
{%- for message in loop_messages %}
    {%- if message.role == "assistant" and message.tool_calls is defined and message.tool_calls is iterable and message.tool_calls | length > 0 %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content is defined and message.content is string and message.content | trim | length > 0 %}
            {{- '\n' + message.content | trim + '\n' }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
            {{- '\n<tool_call>\n<function=' + tool_call.name + '>\n' }}
            {%- if tool_call.arguments is defined %}
                {%- for args_name, args_value in tool_call.arguments|items %}
                    {{- '<parameter=' + args_name + '>\n' }}
                    {%- set args_value = args_value | tojson | safe if args_value is mapping or (args_value is sequence and args_value is not string) else args_value | string %}
                    {{- args_value }}
                    {{- '\n</parameter>\n' }}
                {%- endfor %}
            {%- endif %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "user" or message.role == "system" or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
            {{- '<|im_start|>user\n' }}
        {%- endif %}
        {{- '<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>\n' }}
        {%- if not loop.last and loop.nextitem.role != "tool" %}
            {{- '<|im_end|>\n' }}
        {%- elif loop.last %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

HARMONY = r"""{#- harmony in small: typescript-like tools, channels, dropped analysis -#}
{%- macro typed(spec, needed, nullable=false) -%}
    {%- if spec.type == "array" -%}
        {%- if spec['items'] -%}
            {%- if spec['items']['type'] == "string" -%}
                {{- "string[]" }}
            {%- elif spec['items']['type'] in ["number", "integer"] -%}
                {{- "number[]" }}
            {%- else -%}
                {{- typed(spec['items'], needed) + "[]" }}
            {%- endif -%}
            {%- if nullable -%}{{- " | null" }}{%- endif -%}
        {%- else -%}
            {{- "any[]" }}
        {%- endif -%}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string and spec.type is not mapping and spec.type[0] is defined -%}
        {%- if spec.type | length > 1 -%}{{- spec.type | join(" | ") }}{%- else -%}{{- spec.type[0] }}{%- endif -%}
    {%- elif spec.oneOf -%}
        {%- for variant in spec.oneOf -%}
            {{- typed(variant, needed) -}}
            {%- if not loop.last %}{{- " | " }}{% endif -%}
        {%- endfor -%}
    {%- elif spec.type == "string" -%}
        {%- if spec.enum -%}{{- '"' + spec.enum|join('" | "') + '"' -}}{%- else -%}{{- "string" }}{%- endif -%}
    {%- elif spec.type == "object" -%}
        {%- if spec.properties -%}
            {{- "{\n" }}
            {%- for prop, prop_spec in spec.properties.items() -%}
                {{- prop -}}
                {%- if prop not in (spec.required or []) -%}{{- "?" }}{%- endif -%}
                {{- ": " }}
                {{- typed(prop_spec, spec.required or []) }}
                {%- if not loop.last -%}{{- ", " }}{%- endif -%}
            {%- endfor -%}
            {{- "}" }}
        {%- else -%}
            {{- "object" }}
        {%- endif -%}
    {%- else -%}
        {{- spec.type if spec.type else "any" }}
    {%- endif -%}
{%- endmacro -%}
{%- if reasoning_effort is not defined %}{%- set reasoning_effort = "medium" %}{%- endif %}
{{- "<|start|>system<|message|>" }}
{{- "Current date: " + strftime_now("%Y-%m-%d") + "\n\nReasoning: " + reasoning_effort + "<|end|>" }}
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {%- set developer_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set developer_message = "" %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if developer_message or tools %}
    {{- "<|start|>developer<|message|>" }}
    {%- if developer_message %}{{- "# Instructions\n\n" + developer_message + "\n\n" }}{%- endif %}
    {%- for tool in tools or [] %}
        {%- set tool = tool.function %}
        {{- "// " + tool.description + "\ntype " + tool.name + " = " }}
        {%- if tool.parameters and tool.parameters.properties %}
            {{- "(_: {\n" }}
            {%- for name, spec in tool.parameters.properties.items() %}
                {%- if spec.description %}{{- "// " + spec.description + "\n" }}{%- endif %}
                {{- name }}{{- "?" if name not in (tool.parameters.required or []) }}{{- ": " + typed(spec, tool.parameters.required or []) }}
                {%- if spec.default is defined %}{{- " // default: " + (spec.default | tojson if spec.default is not string else spec.default) }}{%- endif %}
                {{- ",\n" if not loop.last else "\n" }}
            {%- endfor %}
            {{- "}) => any;\n" }}
        {%- else %}
            {{- "() => any;\n" }}
        {%- endif %}
    {%- endfor %}
    {{- "<|end|>" }}
{%- endif %}
{%- set last_tool_call = namespace(name=none) %}
{%- for message in loop_messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if "content" in message and message.content and ("<|channel|>analysis<|message|>" in message.content or "<|channel|>final<|message|>" in message.content) %}
            {{- raise_exception("Put the analysis into 'thinking' and the answer into 'content'.") }}
        {%- endif %}
        {%- if "tool_calls" in message %}
            {%- set future_final_message = namespace(found=false) %}
            {%- for future_message in loop_messages[loop.index:] %}
                {%- if future_message.role == 'assistant' and "tool_calls" not in future_message %}
                    {%- set future_final_message.found = true %}
                {%- endif %}
            {%- endfor %}
            {%- set tool_call = message.tool_calls[0] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {%- if message.content and message.thinking %}
                {{- raise_exception("Cannot have both content and thinking with a tool call.") }}
            {%- elif message.thinking and not future_final_message.found %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant to=" }}
            {{- "functions." + tool_call.name + "<|channel|>commentary " }}
            {{- (tool_call.content_type if tool_call.content_type is defined else "json") + "<|message|>" }}
            {{- tool_call.arguments|tojson }}
            {{- "<|call|>" }}
            {%- set last_tool_call.name = tool_call.name %}
        {%- elif loop.last and not add_generation_prompt %}
            {%- if "thinking" in message %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
            {%- set last_tool_call.name = none %}
        {%- endif %}
    {%- elif message.role == 'tool' -%}
        {%- if last_tool_call.name is none %}
            {{- raise_exception("A tool message without an assistant's call before it.") }}
        {%- endif %}
        {{- "<|start|>functions." + last_tool_call.name + " to=assistant<|channel|>commentary<|message|>" + message.content|tojson + "<|end|>" }}
    {%- elif message.role == 'user' -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}
"""

GLM = r"""[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
<tools>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
</tools>{%- endif -%}
{%- macro visible_text(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}
                {{- item.text }}
            {%- elif item is string -%}
                {{- item }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- content }}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {% set ns.last_user_index = loop.index0 -%}
    {%- endif %}
{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{{ visible_text(m.content) }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not visible_text(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- set reasoning_content = '' %}
{%- set content = visible_text(m.content) %}
{%- if m.reasoning_content is string %}
    {%- set reasoning_content = m.reasoning_content %}
{%- else %}
    {%- if '</think>' in content %}
        {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
{%- endif %}
{%- if loop.index0 > ns.last_user_index and reasoning_content -%}
{{ '\n<think>' + reasoning_content.strip() +  '</think>'}}
{%- else -%}
{{ '\n<think></think>' }}
{%- endif -%}
{%- if content.strip() -%}
{{ '\n' + content.strip() }}
{%- endif -%}
{% if m.tool_calls %}
{% for tc in m.tool_calls %}
{%- if tc.function %}
    {%- set tc = tc.function %}
{%- endif %}
{{ '\n<tool_call>' + tc.name }}
{% set _args = tc.arguments %}
{% for k, v in _args.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}
</tool_call>{% endfor %}
{% endif %}
{%- elif m.role == 'tool' -%}
{%- if m.content is string -%}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
    {{- '<|observation|>' }}
{%- endif %}
{{- '\n<tool_response>\n' }}
{{- m.content }}
{{- '\n</tool_response>' }}
{%- else -%}
<|observation|>{% for tr in m.content %}

<tool_response>
{{ tr.output if tr.output is defined else tr }}
</tool_response>{% endfor -%}
{% endif -%}
{%- elif m.role == 'system' -%}
<|system|>
{{ visible_text(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}
{%- endif -%}
"""

DEEPSEEK = r"""{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% if not thinking is defined %}{% set thinking = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true, is_last_user=false) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '

' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{%- set ns.is_first = false -%}{%- set ns.is_last_user = true -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['tool_calls'] is defined and message['tool_calls'] is not none %}{%- if ns.is_last_user %}{{'<｜Assistant｜></think>'}}{%- endif %}{%- set ns.is_last_user = false -%}{%- set ns.is_first = false %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}{%- if message['content'] is none %}{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ tool['function']['name'] + '<｜tool▁sep｜>' + tool['function']['arguments'] + '<｜tool▁call▁end｜>'}}{%- else %}{{message['content'] + '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' + tool['function']['arguments'] + '<｜tool▁call▁end｜>'}}{%- endif %}{%- set ns.is_first = true -%}{%- else %}{{'<｜tool▁call▁begin｜>'+ tool['function']['name'] + '<｜tool▁sep｜>' + tool['function']['arguments'] + '<｜tool▁call▁end｜>'}}{%- endif %}{%- endfor %}{{'<｜tool▁calls▁end｜><｜end▁of▁sentence｜>'}}{%- endif %}{%- if message['role'] == 'assistant' and (message['tool_calls'] is not defined or message['tool_calls'] is none) %}{%- if ns.is_last_user %}{{'<｜Assistant｜>'}}{%- if message['prefix'] is defined and message['prefix'] and thinking %}{{'<think>'}}{%- else %}{{'</think>'}}{%- endif %}{%- endif %}{%- set ns.is_last_user = false -%}{%- if ns.is_tool %}{{message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}{%- set content = message['content'] -%}{%- if '</think>' in content %}{%- set content = content.split('</think>', 1)[1] -%}{%- endif %}{{content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_last_user = false -%}{%- set ns.is_tool = true -%}{{'<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- endif %}{%- endfor -%}{%- if add_generation_prompt and ns.is_last_user and not ns.is_tool %}{{'<｜Assistant｜>'}}{%- if not thinking %}{{'</think>'}}{%- else %}{{'<think>'}}{%- endif %}{% endif %}"""

GEMMA = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate: user, assistant, user, ...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather", "description": "Looks the weather up.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                "days": {"type": ["integer", "null"], "default": 3},
                "spots": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
            },
            "required": ["city"],
        },
    },
}


def call(arguments, name="weather"):
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


def conversations(arguments_as_text=False):
    def args(value):
        return json.dumps(value) if arguments_as_text else value

    user, assistant = {"role": "user", "content": "Hi <b> & 'you'?"}, {"role": "assistant", "content": "Hello!"}
    called = {"role": "assistant", "content": "", "tool_calls": [call(args({"city": "Köln", "days": 2}))]}
    twice = {"role": "assistant", "content": "Both.", "reasoning_content": "need two",
             "tool_calls": [call(args({"city": "A"})), call(args({"city": "B", "spots": [{"x": 1.5}]}))]}
    result = {"role": "tool", "content": "{\"temp\": 21}"}
    yield "one", [user]
    yield "system", [{"role": "system", "content": "Be brief."}, user, assistant, {"role": "user", "content": " spaces \n"}, {"role": "assistant", "content": "  Yes.\n"}]
    yield "think", [user, {"role": "assistant", "content": "<think>\nold thought\n</think>\n\nFirst."}, {"role": "user", "content": "And?"},
                    {"role": "assistant", "content": "Second.", "reasoning_content": "new thought"}]
    yield "thinking", [user, {"role": "assistant", "content": "A", "thinking": "t1"}, user, {"role": "assistant", "content": "B", "reasoning": "t2"}]
    yield "tool", [user, called, result, assistant, user]
    yield "tools", [{"role": "system", "content": "S"}, user, twice, result, {"role": "tool", "content": "plain"}, {"role": "assistant", "content": "Done."}]
    yield "call_last", [user, twice]
    yield "null_content", [user, {"role": "assistant", "content": None, "tool_calls": called["tool_calls"]}, result]
    yield "parts", [{"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "image"}, {"type": "text", "text": "b"}]}, assistant]
    yield "tool_first", [result, user]
    yield "assistant_first", [assistant, user]
    yield "channel", [user, {"role": "assistant", "content": "<|channel|>final<|message|>x"}]


def family_cases():
    families = {"qwen3": QWEN3, "qwen3_coder": QWEN3_CODER, "harmony": HARMONY, "glm": GLM, "deepseek": DEEPSEEK, "gemma": GEMMA}
    templates, chats = {}, {}
    for family, template in families.items():
        templates[family] = template
        as_text = family == "deepseek"
        for name, messages in conversations(as_text):
            key = name + (".text" if as_text else "")
            chats[key] = messages
            for prompt in (False, True):
                for tools in (None, [WEATHER]):
                    if tools and name not in ("one", "tools", "tool"):
                        continue
                    variables = {"bos_token": "<bos>"}
                    if prompt and name in ("one", "system"):
                        variables["enable_thinking"] = False
                        variables["thinking"] = True
                    record = case(f"{family}.{name}" + (".tools" if tools else "") + (".prompt" if prompt else ""),
                                  template, messages, tools, prompt, variables)
                    record["template"], record["messages"] = "@" + family, "@" + key
                    if tools:
                        record["tools"] = "@weather"
                    yield record
    yield {"templates": templates, "conversations": chats, "tools": [WEATHER]}


# --- random expressions ----------------------------------------------------------------------------------------------

class Fuzzer:
    names = ["n", "m", "f", "z", "t", "nope", "s", "e", "u", "l", "ls", "el", "d", "ed", "users", "nested", "missing"]
    literals = ["0", "1", "-1", "2", "3.5", "1e3", "'a'", "''", "'o'", "'Hello'", "true", "false", "none", "[1, 2]", "['a', 'b']",
                "{'a': 1}", "(1, 'x')", "'ä'", "10"]
    binary = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]
    filters = ["length", "list", "first", "last", "string", "upper", "lower", "trim", "title", "capitalize", "sort", "reverse | list",
               "unique | list", "sum", "min", "max", "join('-')", "join", "int", "float", "abs", "round", "round(1)", "tojson", "tojson(indent=1)",
               "default('D')", "default('D', true)", "replace('a', 'b')", "map('string') | list", "map('upper') | list", "map('length') | list",
               "select | list", "reject | list", "select('string') | list", "select('odd') | list", "selectattr('age') | list", "map(attribute='name') | list",
               "dictsort", "items | list", "batch(2) | list", "slice(2) | list", "indent(2)", "center(8)", "wordcount", "truncate(5)", "tojson | length",
               "sort(reverse=true)", "map('abs') | list", "map('int') | list", "sort | first", "join(', ') | upper"]
    tests = ["defined", "undefined", "none", "string", "number", "mapping", "sequence", "iterable", "odd", "even", "true", "false", "boolean", "integer",
             "float", "lower", "upper", "callable", "divisibleby(2)", "eq(1)", "gt(1)", "in([1, 'a'])", "sameas(none)", "lt(2.5)", "ne('a')"]
    methods = ["upper()", "lower()", "strip()", "split()", "split('o')", "split('o', 1)", "startswith('H')", "endswith('d')", "replace('o', '')", "title()",
               "get('a')", "get('zz', 1)", "keys() | list", "values() | list", "items() | list", "count('a')", "find('o')", "index(1)", "capitalize()",
               "lstrip('H')", "rstrip('d')", "zfill(4)", "isdigit()", "join(['x', 'y'])", "partition('o')", "splitlines()", "rsplit('l', 1)", "x", "name", "a"]
    subscripts = ["[0]", "[-1]", "[1:]", "[:2]", "[::-1]", "['a']", "['name']", "[5]", "[1:3]", "[::2]", "[-2:]", "[none]"]

    def __init__(self, seed):
        self.random = random.Random(seed)

    def expression(self, depth):
        pick = self.random.random()
        choice = self.random.choice
        if depth == 0 or pick < 0.12:
            return choice(self.names) if self.random.random() < 0.6 else choice(self.literals)
        if pick < 0.38:
            return f"{self.operand(depth)} {choice(self.binary)} {self.operand(depth)}"
        if pick < 0.60:
            return f"{self.operand(depth)} | {choice(self.filters)}"
        if pick < 0.70:
            return f"{self.operand(depth)} is {choice(['', 'not '])}{choice(self.tests)}"
        if pick < 0.82:
            return f"{self.operand(depth)}.{choice(self.methods)}"
        if pick < 0.92:
            subscript = choice(self.subscripts)  # Jinja2 folds slices of constants by rules of their own: slice variables
            return f"{choice(self.names) if ':' in subscript else self.operand(depth)}{subscript}"
        if pick < 0.96:
            return f"{choice(['not ', '-'])}{self.operand(depth)}"
        return f"{self.operand(depth)} if {self.operand(depth)} else {self.operand(depth)}"

    def operand(self, depth):
        text = self.expression(depth - 1)
        return text if re.fullmatch(r"\w+|'\w*'", text) else f"({text})"

    def cases(self, count, prefix):
        made = errors = tried = 0
        seen = set()
        while made < count:
            tried += 1
            text = self.expression(self.random.choice([1, 2, 2, 3, 3]))
            if text in seen:
                continue
            seen.add(text)
            names = set(re.findall(r"\b\w+\b", text))
            record = case(f"{prefix}.{made}", "{{ " + text + " }}", variables={k: v for k, v in CONTEXT.items() if k in names})
            record["template_variables"] = sorted(k for k in CONTEXT if k in names)
            record.pop("variables", None)
            result = record.get("expected")
            if result is None:
                if errors * 4 > made:
                    continue
                errors += 1
            elif len(result) > 300 or re.search(r"0x[0-9a-f]{6}|\d{19}|<bound|<built-in|<method|<function|dict_|Undefined|object at", result):
                continue
            made += 1
            yield record


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fuzz", type=int, default=300)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", default=str(pathlib.Path(__file__).resolve().parents[2] / "Tests/DataTests/TemplateGoldens/cases.json"))
    options = parser.parse_args()
    records = []
    shared = {"context": CONTEXT}
    for i, text in enumerate(split_expressions(EXPRESSIONS)):
        record = case(f"expression.{i}", "{{ " + text + " }}", variables=CONTEXT)
        record.pop("variables", None)
        record["template_variables"] = sorted(CONTEXT)
        result = record.get("expected", "")
        if re.search(r"0x[0-9a-f]{8}|<bound|<built-in|<method|<function|Undefined|object at", result):
            continue
        records.append(record)
    for name, template in STATEMENTS.items():
        record = case("statement." + name, template, variables=CONTEXT)
        record.pop("variables", None)
        record["template_variables"] = sorted(CONTEXT)
        records.append(record)
    for record in family_cases():
        if "templates" in record:
            shared |= record
        else:
            records.append(record)
    records += list(Fuzzer(options.seed).cases(options.fuzz, "fuzz"))
    for record in records:
        if record.get("template_variables") == sorted(CONTEXT):
            record["template_variables"] = True
    with open(options.out, "w") as file:
        file.write(json.dumps(shared, ensure_ascii=False)[:-1] + ', "cases": [\n')
        file.write(",\n".join(json.dumps(r, ensure_ascii=False) for r in records))
        file.write("\n]}\n")
    errors = sum("error" in r for r in records)
    print(f"{len(records)} cases, {errors} of them errors -> {options.out}, {pathlib.Path(options.out).stat().st_size} bytes")


if __name__ == "__main__":
    main()
