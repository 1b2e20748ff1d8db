"""Makes Tests/DataTests/TokenizerGoldens/: tokenizer.json files and what Hugging Face tokenizers does with them.

Run:     python tools/goldens/tokenizer_files.py     (tokenizers 0.23.3)
Options: --out FOLDER, --components N (random tokenizers, default 70), --seed S

  families.json    a small tokenizer of each published kind, texts, ids, offsets (in characters) and decoded texts;
                   the first kind also has the text it was trained on, as the judge of the trainer
  components.json  random tokenizers of all supported parts; error cases of the reference itself are left out
  unicode.json     character classes and normalization forms over all of Unicode, as counts and FNV-1a hashes
"""

import argparse
import json
import pathlib
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+")
CL100K = QWEN.replace(r"|\p{N}| ?", r"|\p{N}{1,3}| ?")
TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + TAIL +
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + TAIL +
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
KIMI = (r"[\p{Han}]+|" + O200K.split(r"|\p{N}{1,3}")[0].replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]") +
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]

TRAINING = ("The cat sat on the mat; the other cat did not. A cat's whiskers are longer than a rat's, aren't they?\n"
            "def merge(pairs, ranks):\n    while True:\n        best = min(pairs, key=ranks.get)\n        if best not in ranks:\n"
            "            return pairs\n\n// the model reads the text, and the text is the model's world\n"
            "Die Katze schläft auf der Matte. Köln grüßt Zürich. Le garçon déjà vu à l'été.\nКошка спит на коврике, и кошка "
            "не знает.\n猫は世界を見る。猫の世界。模型可以思考，模型可以学习。\nأهلا بالعالم\n고양이는 잔다\n1234 5678 3.14159 2024-01-02\n") * 3
TEXTS = [
    "", " ", "   ", "\n\n \n", "The cat's mat.", " leading and trailing  ", "tabs\tand\r\n\r\nlines\n  end", "don't WE'LL I'Ve they'ſ 'Kit",
    "12345678 3.14 ½ ² Ⅷ ٣٤", "def f(x):\n        return x ** 2  # why?\n\n\n", "snake_case CamelCase HTTPServer //x /* */ a/b\n/",
    "e\u0301 vs \u00e9, \u1100\u1161\u11a8 \uac00\u11a8, \u0f71\u0f72\u0f73, a\u0323\u0307\u0345, \u212b \u2126 \ufb01 \u0344",
    "Köln grüßt. Кошка спит. 猫の世界。模型可以思考！ 고양이 أهلا บ้าน नमस्ते", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea ✓ \u2581 \u00a0\u2003\u3000x\u200b\ufeff",
    "a" * 70, "=" * 40 + "-" * 33, "<|im_end|><think> <|im_end|> x</think><bos><start_of_turn>user\n<｜User｜>[gMASK]",
    "\u0378\ue000\U0010fffd\U000e0001\u1c89\u0897 \U00011938\ua7da", "it''s 'S 's'", "   x   \n   y\u2028 z\u0085 w"]


def results(tokenizer, texts):
    rows = []
    for text in texts:
        plain = tokenizer.encode(text, add_special_tokens=False)
        full = tokenizer.encode(text)
        row = {"text": text, "ids": plain.ids, "offsets": [x for pair in plain.offsets for x in pair],
               "decoded": tokenizer.decode(full.ids, skip_special_tokens=False)}
        if full.ids != plain.ids:
            row["with_special"] = full.ids
        skipped = tokenizer.decode(full.ids, skip_special_tokens=True)
        if skipped != row["decoded"]:
            row["without_special"] = skipped
        rows.append(row)
    return rows


def byte_level(splits, count, specials, form=None, ignore_merges=False, bos=None, strings=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if form:
        tokenizer.normalizer = form
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(s), "isolated") for s in splits] + [bytes_]) if splits else bytes_
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([TRAINING], trainers.BpeTrainer(
        vocab_size=count, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    for text, special in specials:
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(
            [AddedToken(text, special=special, normalized=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    if strings:
        data = json.loads(tokenizer.to_str())
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
        tokenizer = Tokenizer.from_str(json.dumps(data))
    return tokenizer


def gemma():
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    trained = Tokenizer(models.BPE(fuse_unk=True, unk_token="<unk>", byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.train_from_iterator([TRAINING[i:i + 60] for i in range(0, len(TRAINING), 60)],
                                trainers.BpeTrainer(vocab_size=260, show_progress=False, limit_alphabet=70))
    model = json.loads(trained.to_str())["model"]
    vocab = {text: i for i, text in enumerate(specials + [f"<0x{b:02X}>" for b in range(256)])}
    for text in sorted(model["vocab"], key=model["vocab"].get):
        vocab.setdefault(text, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m) for m in model["merges"]], fuse_unk=True,
                                     unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))])
    return tokenizer


def families():
    chat = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<think>", False), ("</think>", False)]
    deep = [("<｜begin▁of▁sentence｜>", True), ("<｜User｜>", False)]
    kinds = {
        "qwen": byte_level([QWEN], 360, chat, normalizers.NFC()),
        "glm": byte_level([CL100K], 360, [("[gMASK]", True), ("<think>", False)], ignore_merges=True),
        "gpt_oss": byte_level([O200K], 340, [("<|end|>", True)], ignore_merges=True, strings=True),
        "deepseek": byte_level(DEEPSEEK, 340, deep, bos="<｜begin▁of▁sentence｜>"),
        "kimi": byte_level([KIMI], 320, []),
        "gpt2": byte_level([], 320, [], strings=True),
        "gemma": gemma(),
    }
    out = [{"name": name, "tokenizer": json.loads(t.to_str()), "results": results(t, TEXTS)} for name, t in kinds.items()]
    out[0]["training"] = TRAINING
    return out


# Random tokenizers ---------------------------------------------------------------------------------------------------

PATTERNS = [
    r"\s+", r"\w+", r"[^\s]+", r"\d{1,3}", r"a|b", r"\p{L}+", r"(?<=a)b", r"(?i:THE|s)+", r".", r"[[:punct:]]+",
    r"(?:ab)+?c?", r"\p{Lu}\p{Ll}*", r"[a-y&&[^aeiou]]+", r"(?!a)\w", r"\W+", r"^.", r"é|e\x{301}", r"[\p{Han}ぁ-ん]+",
    r"(?>\w+)s?", r"(?m:.+)", r"\S\s*", r"[^\W\d_]+", r"\p{^L}", r"▁", r"[ \t]+(?=\S)|\n", r"\R", r"(?<!\w)'s|\p{N}",
    r"(?:(?:a|ab)(?:c|bcd)(?:d*))", r"\h+", r"(?x: \s + ) # c", r"(?i)[^a-cß]+", r"(a|b)*c", r"[^\]a-]+", r"a{2}+b?",
    r"(?:a|b){2,3}", r"\bt", r"(?<=[a-c]{1,2})d", r"[[:alpha:]_]+\B", r"\u0061\101?", r"(?:x|(?i)T)h", r"[\x{4e00}-\x{9fff}]",
]
EMPTY_PATTERNS = [r"x*", r"\b", r"\z", r"a{2,}?|b{,2}", r"$", r"(?:a?b?)*", r"a++|b?+", r"(?=a)", r"(?:|a)+"]
WORDS = ["a", "b", "ab", "abc", "THE", "the", "s", "'s", "'S", "é", "e\u0301", "É", "ſ", "1", "12", "123456", " ", "  ",
         "\n", "\r\n", "\t", "\u00a0", "▁", "_", "的", "汉字", "か\u3099", "가", "각", "\U0001f600", "!", "...", "x", "y",
         "<s>", "</s>", "[X]", "tok", " tok ", "²", "½", "ﬁ", "ß", "İ", "\u0f71\u0f72\u0f73", "\u2028", "cab", "bcd",
         "\u212b", "Å", "\u1e9b\u0323", "_x", "a" * 18, "ab" * 30, "\U0001d400", "३", "\u200c"]


class Maker:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def chance(self, p):
        return self.r.random() < p

    def pattern(self, text_share, may_be_empty=True):
        if self.chance(text_share):
            return {"String": self.r.choice([" ", "a", "▁", "ab", "\n", "e", "  ", "'", "é"])}
        return {"Regex": self.r.choice(PATTERNS + (EMPTY_PATTERNS if may_be_empty else []))}

    def normalizer(self, depth=0):
        kind = self.r.choice(["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "Prepend", "Replace", "Replace", "Sequence"])
        if kind == "Strip":
            return {"type": kind, "strip_left": self.chance(.5), "strip_right": self.chance(.5)}
        if kind == "Prepend":
            return {"type": kind, "prepend": self.r.choice(["▁", "a", " xx"])}
        if kind == "Replace":
            return {"type": kind, "pattern": self.pattern(.5, False), "content": self.r.choice(["▁", "", "ab", "é"])}
        if kind == "Sequence":
            return {"type": kind, "normalizers": [self.normalizer(depth + 1) for _ in range(self.r.randint(0, 3 - depth))]}
        return {"type": kind}

    def behavior(self):
        return self.r.choice(["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"])

    def metaspace(self):
        return {"type": "Metaspace", "replacement": self.r.choice("▁_"),
                "prepend_scheme": self.r.choice(["first", "never", "always"]), "split": self.chance(.5)}

    def byte_level(self):
        return {"type": "ByteLevel", "add_prefix_space": self.chance(.3), "trim_offsets": False, "use_regex": self.chance(.5)}

    def pre_tokenizer(self, depth=0):
        kind = self.r.choice(["Split"] * 4 + ["ByteLevel", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation",
                                              "Metaspace", "Sequence", "Sequence"])
        if kind == "Split":
            return {"type": kind, "pattern": self.pattern(.25), "behavior": self.behavior(), "invert": self.chance(.4)}
        if kind == "ByteLevel":
            return self.byte_level()
        if kind == "Metaspace":
            return self.metaspace()
        if kind == "Digits":
            return {"type": kind, "individual_digits": self.chance(.5)}
        if kind == "Punctuation":
            return {"type": kind, "behavior": self.behavior()}
        if kind == "Sequence":
            return {"type": kind, "pretokenizers": [self.pre_tokenizer(depth + 1) for _ in range(self.r.randint(0, 3 - depth))]}
        return {"type": kind}

    def decoder(self, depth=0):
        kind = self.r.choice(["ByteLevel", "ByteLevel", "ByteFallback", "Fuse", "Replace", "Strip", "Metaspace", "Sequence"])
        if kind == "ByteLevel":
            return self.byte_level()
        if kind == "Replace":
            return {"type": kind, "pattern": self.pattern(.6), "content": self.r.choice([" ", "", "ab", "é"])}
        if kind == "Strip":
            return {"type": kind, "content": self.r.choice(" a▁"), "start": self.r.randint(0, 2), "stop": 0}
        if kind == "Metaspace":
            return self.metaspace()
        if kind == "Sequence":
            return {"type": kind, "decoders": [self.decoder(depth + 1) for _ in range(self.r.randint(1, 4 - depth))]}
        return {"type": kind}

    def model(self, bytes_):
        vocab = {}
        prefix, suffix = self.r.choice([None] * 5 + ["##"]), self.r.choice([None] * 5 + ["</w>"])
        chars = list("abcdeéxyzs' ▁_0123\n的Ġ.,!T")
        if self.chance(.12):
            chars += [f"<0x{b:02X}>" for b in range(256) if self.chance(.99)]
        if bytes_ and self.chance(.5):
            chars += [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if self.chance(.97)]
        for text in ["<unk>"] + chars:
            vocab.setdefault(text, len(vocab))
        for text in chars[:30]:
            for form in ([prefix + text] if prefix else []) + ([text + suffix] if suffix else []):
                if self.chance(.8):
                    vocab.setdefault(form, len(vocab))
        merges = []
        for _ in range(self.r.randint(0, 40)):
            a, b = self.r.choice(list(vocab)), self.r.choice(list(vocab))
            if "<0x" in a + b or len(a + b) > 10 or (prefix and not b.startswith(prefix)) or (suffix and suffix in a):
                continue
            result = a + b[len(prefix or ""):]
            vocab.setdefault(result, len(vocab))
            merges.append((a, b))
        as_text = all(" " not in a + b for a, b in merges) and self.chance(.5)
        return {"type": "BPE", "dropout": None, "unk_token": self.r.choice([None, "<unk>"]),
                "continuing_subword_prefix": prefix, "end_of_word_suffix": suffix, "fuse_unk": self.chance(.5),
                "byte_fallback": self.chance(.5), "ignore_merges": self.chance(.3), "vocab": vocab,
                "merges": [" ".join(m) if as_text else list(m) for m in merges]}

    def tokenizer(self):
        bytes_ = self.chance(.5)
        model = self.model(bytes_)
        steps = self.pre_tokenizer() if self.chance(.85) else None
        if bytes_:
            steps = {"type": "Sequence", "pretokenizers": ([steps] if steps else []) + [self.byte_level()]}
        added = []
        names = ["<s>", "</s>", "[X]", "tok", "é", "a", "THE", "\n", " ", "<s", "的汉", "  ", "▁", "s>"]
        for text in self.r.sample(names, self.r.randint(0, 5)):
            token = {"id": model["vocab"].get(text, len(model["vocab"]) + len(added)), "content": text}
            for flag, share in [("single_word", .2), ("lstrip", .2), ("rstrip", .2), ("normalized", .4), ("special", .5)]:
                token[flag] = self.chance(share)
            added.append(token)
        # Ids of new tokens follow the vocabulary without gaps, as tokenizers numbers them.
        new = [t for t in added if t["content"] not in model["vocab"]]
        for i, token in enumerate(new):
            token["id"] = len(model["vocab"]) + i
        processor = None
        if added and self.chance(.4):
            token = self.r.choice(added)
            processor = {"type": "TemplateProcessing",
                         "single": [{"SpecialToken": {"id": token["content"], "type_id": 0}},
                                    {"Sequence": {"id": "A", "type_id": 0}}],
                         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                         "special_tokens": {token["content"]: {"id": token["content"], "ids": [token["id"]],
                                                               "tokens": [token["content"]]}}}
        return {"version": "1.0", "added_tokens": added, "normalizer": self.normalizer() if self.chance(.6) else None,
                "pre_tokenizer": steps, "post_processor": processor,
                "decoder": self.decoder() if self.chance(.9) else None, "model": model}

    def text(self):
        return "".join(self.r.choice(WORDS) for _ in range(self.r.randint(1, 12)))


def nests_rewriting(part, seen=None):
    """A Metaspace after a ByteLevel asks for offsets finer than Martlet keeps; nobody publishes such a tokenizer."""
    kinds = []

    def walk(p):
        if p["type"] == "Sequence":
            for q in p["pretokenizers"]:
                walk(q)
        else:
            kinds.append(p["type"])
    if part:
        walk(part)
    return "ByteLevel" in kinds and "Metaspace" in kinds[kinds.index("ByteLevel"):]


def components(count, seed):
    maker, out = Maker(seed), []
    while len(out) < count:
        data = maker.tokenizer()
        texts = [maker.text() for _ in range(3)]
        if nests_rewriting(data["pre_tokenizer"]):
            continue
        try:
            tokenizer = Tokenizer.from_str(json.dumps(data))
            if tokenizer.normalizer:  # Two added tokens that normalize to one text: the reference chooses at random.
                forms = [tokenizer.normalizer.normalize_str(t["content"]) for t in data["added_tokens"] if t["normalized"]]
                if len(set(forms)) < len(forms) or "" in forms:
                    continue
            rows = results(tokenizer, texts)
        except BaseException as error:  # The reference panics on some of its own configurations.
            if isinstance(error, KeyboardInterrupt):
                raise
            continue
        for row in rows:
            del row["offsets"]
        out.append({"tokenizer": data, "results": rows})
    return out


# Unicode -------------------------------------------------------------------------------------------------------------

def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def runs(scalars):
    """The first and last of each run of scalars, three bytes each; surrogates do not end a run."""
    out = []
    for scalar in scalars:
        before = 0xD7FF if scalar == 0xE000 else scalar - 1
        if out and out[-1][1] == before:
            out[-1][1] = scalar
        else:
            out.append([scalar, scalar])
    return b"".join(edge.to_bytes(3, "big") for run in out for edge in run)


def unicode_facts():
    scalars = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    everything = "".join(map(chr, scalars))
    classes = {}
    names = ["L", "M", "N", "P", "S", "Z", "C", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd", "Nl", "No", "Pc", "Pd", "Po", "Sm",
             "Sc", "Sk", "So", "Cf", "Co", "Cn", "Han", "Hiragana", "Katakana", "Hangul", "Thai", "Cyrillic", "Alphabetic", "Word"]
    posix = ["alpha", "alnum", "upper", "lower", "digit", "space", "punct", "cntrl", "xdigit", "word", "print", "graph"]
    patterns = [rf"\p{{{n}}}" for n in names] + [f"[[:{n}:]]" for n in posix]
    patterns += [r"\s", r"\d", r"\w", r"\h", r"[\w]", r"\S", r"[^\s\p{L}\p{N}]", r"(?i:s)", r"(?i:[a-zà-ÿ])", r"(?i:\x{1c4})",
                 r"(?i:[α-ω])", r"."]
    for pattern in patterns:
        splitter = pre_tokenizers.Split(Regex(pattern + "+"), "removed", invert=True)
        found = set()
        for piece, _ in splitter.pre_tokenize_str(everything):
            found.update(piece)
        classes[pattern] = [len(found), fnv(runs(sorted(map(ord, found))))]
    forms = {}
    marks = "\u0301\u0323\u0345\u0f72\u3099\u1161\u11a8\u09be"
    for name in ["NFC", "NFD", "NFKC", "NFKD"]:
        form = getattr(normalizers, name)()
        texts = [everything[:0x2FA20]] + ["".join(c + mark for c in everything[:0x1200]) for mark in marks]
        forms[name] = [fnv(form.normalize_str(text).encode()) for text in texts]
    forms["Lowercase"] = [fnv(normalizers.Lowercase().normalize_str(everything[:0x1F000]).encode())]
    for name, part in [("Digits", pre_tokenizers.Digits(individual_digits=True)), ("Punctuation", pre_tokenizers.Punctuation()),
                       ("Whitespace", pre_tokenizers.Whitespace()), ("WhitespaceSplit", pre_tokenizers.WhitespaceSplit())]:
        pieces = [piece for piece, _ in part.pre_tokenize_str(everything[:0x1FC00])]
        classes[name] = [len(pieces), fnv("\n".join(pieces).encode())]
    return {"classes": classes, "forms": forms, "marks": marks}


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parents[2]
    options.add_argument("--out", type=pathlib.Path, default=root / "Tests/DataTests/TokenizerGoldens")
    options.add_argument("--components", type=int, default=70)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", choices=["families", "components", "unicode"])
    arguments = options.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    parts = {"families": families, "components": lambda: components(arguments.components, arguments.seed),
             "unicode": unicode_facts}
    for name, make in parts.items():
        if arguments.only in (None, name):
            text = json.dumps(make(), ensure_ascii=False, separators=(",", ":"))
            (arguments.out / f"{name}.json").write_text(text + "\n")


main()
