"""The attention kernels against float64 (`python3 attention.py check`) and beside torch's own (`python3 attention.py bench`).
The tables are those of Sources/MartletCUDA/Ops/AttentionFlash.swift; of AttentionHopper.swift but for short sequences (parts=1)."""
import os, sys
import torch
from lab import Module, TensorMap, bf16

FORWARD = {64: dict(WARPS=4, WARP_ROWS=32, RING=2, BLOCKS=3), 128: dict(WARPS=4, WARP_ROWS=32, RING=2, BLOCKS=2),
           192: dict(WARPS=8, WARP_ROWS=16, RING=2, BLOCKS=1), 256: dict(WARPS=8, WARP_ROWS=16, RING=2, BLOCKS=1)}
BACKWARD = {64: dict(KEYS=128, QUERIES=128, WARPS=8, STAGES=2), 128: dict(KEYS=128, QUERIES=64, WARPS=8, STAGES=2),
            192: dict(KEYS=64, QUERIES=64, WARPS=8, STAGES=2), 256: dict(KEYS=64, QUERIES=64, WARPS=8, STAGES=2)}
# For GPUs with 99 KB of shared memory.
SMALL_FORWARD = {**FORWARD, 128: dict(WARPS=4, WARP_ROWS=32, RING=2, BLOCKS=1),
                 192: dict(WARPS=4, WARP_ROWS=16, RING=2, BLOCKS=1), 256: dict(WARPS=4, WARP_ROWS=16, RING=2, BLOCKS=1)}
SMALL_BACKWARD = {64: dict(KEYS=128, QUERIES=64, WARPS=8, STAGES=2), 128: dict(KEYS=64, QUERIES=64, WARPS=4, STAGES=1),
                  192: dict(KEYS=32, QUERIES=64, WARPS=4, STAGES=1)}


def ceil_div(a, b): return -(-a // b)


class Attention:
    """q [T, Q, D], k and v [U, G, D]; spans are (first query, queries, first key, keys). One row after each output is
    poisoned, and must stay so."""

    def __init__(self, spans, Q, G, D, dtype=bf16, seed=0):
        g = torch.Generator("cuda").manual_seed(seed)
        self.spans, self.Q, self.G, self.D, self.dtype = spans, Q, G, D, dtype
        self.T = max(s[0] + s[1] for s in spans)
        self.U = max(s[2] + s[3] for s in spans)
        self.scale = D ** -0.5
        rand = lambda *shape: torch.randn(*shape, device="cuda", generator=g).to(dtype)
        self.q, self.k, self.v = rand(self.T, Q, D), rand(self.U, G, D), rand(self.U, G, D)
        self.dout = rand(self.T, Q, D)
        # Small, as their rounding counts against dk and dv.
        self.dk0, self.dv0 = 0.05 * rand(self.U, G, D), 0.05 * rand(self.U, G, D)
        self.clear()

    def clear(self):
        nan = lambda *shape, dtype=self.dtype: torch.full(shape, float("nan"), device="cuda", dtype=dtype)
        self.o, self.dq = nan(self.T + 1, self.Q, self.D), nan(self.T + 1, self.Q, self.D)
        self.lse = nan(self.T + 1, self.Q, dtype=torch.float32)
        self.dk, self.dv = nan(self.U + 1, self.G, self.D), nan(self.U + 1, self.G, self.D)
        self.reset()

    def reset(self):
        self.dk[:-1], self.dv[:-1] = self.dk0, self.dv0

    def table(self, rows):
        return torch.tensor(rows, dtype=torch.int32).cuda()

    def query_blocks(self, rows):
        """Longest first."""
        works = [(s[3] - s[1] + min(s[1], (b + 1) * rows), (*s, b, 0, 0, 0)) for s in self.spans for b in range(ceil_div(s[1], rows))]
        return [w for _, w in sorted(works, key=lambda w: -w[0])]

    def flash(self, **shape):
        shape = {**FORWARD[self.D], **shape}
        rows = shape["WARPS"] * shape["WARP_ROWS"]
        works = self.query_blocks(rows)
        table = self.table(works)
        module = Module("attention_flash", HEAD=self.D, **shape)
        shared = 2 * self.D * (rows + 64 * shape["RING"])
        def launch():
            module("attention_flash", self.Q * len(works), 32 * shape["WARPS"], self.q, self.k, self.v, self.o, self.lse,
                   table, self.Q, self.G, self.scale, shared=shared)
        return launch

    def rows(self, x, heads, box):
        return TensorMap(x, [self.D, heads, x.shape[0]], [64, 1, box])

    def hopper(self, together=None):
        works, processors = self.query_blocks(128), torch.cuda.get_device_properties(0).multi_processor_count
        table, together = self.table(works), together or self.Q
        maps = self.rows(self.q, self.Q, 128), self.rows(self.k, self.G, 128), self.rows(self.v, self.G, 128)
        module = Module("attention_sm90_forward")
        def launch():
            module("attention_sm90_forward", min(processors, len(works) * self.Q), 384, *maps, self.v, self.o, self.lse, table,
                   len(works), together, self.Q, self.G, self.scale, shared=229504)
        return launch

    def key_blocks(self, keys, queries, parts, together):
        """The schedule of a backward pass: key blocks longest first, tiles of queries, parts of a group, parts side by side."""
        works, tiles = [], 0
        for s in self.spans:
            count = ceil_div(s[1], queries)
            for b in range(max(1, ceil_div(s[3], keys))):
                first = max(0, b * keys - (s[3] - s[1])) // queries if b else 0
                works.append((count - first, (*s, b, tiles, 0, 0)))
            tiles += count
        works = [w for _, w in sorted(works, key=lambda w: -w[0])]
        group = self.Q // self.G
        processors = torch.cuda.get_device_properties(0).multi_processor_count
        if parts is None:
            parts, items = 1, len(works) * self.G
            splits = items <= min(4 * processors, 2 * ceil_div(self.T, keys) * self.G)
            while splits and items * parts < 16 * processors and group % (2 * parts) == 0: parts *= 2
        units = parts * self.G
        fills = lambda n: units % n == 0 and n * len(works) >= 2 * processors
        together = together or next(filter(fills, range(1, units + 1)), units)
        return works, tiles, parts, together

    def flash_backward(self, parts=None, together=None, **shape):
        shape = {**BACKWARD[self.D], **shape}
        keys, queries, warps, stages = (shape[n] for n in ("KEYS", "QUERIES", "WARPS", "STAGES"))
        works, tiles, parts, together = self.key_blocks(keys, queries, parts, together)
        table = self.table(works)
        nan = lambda *size: torch.full(size, float("nan"), device="cuda")
        lse, delta = nan(self.Q, self.T), nan(self.Q, self.T)
        sums = nan(self.Q, self.T, self.D)
        key_sums = nan(len(works) * self.G, 2, keys, self.D) if parts > 1 else None
        count = 1 + tiles * self.Q * warps + len(works) * self.G
        state = torch.full((count,), -1, device="cuda", dtype=torch.int32)
        module = Module("attention_flash_backward", HEAD=self.D, **shape)
        shared = 4 * self.D * (keys + stages * queries) + 4 * keys * queries + 8 * stages * queries
        def launch():
            module("attention_delta", ceil_div(self.T * self.Q, 8), 256, self.o, self.dout, self.lse, lse, delta, state, count,
                   self.T, self.Q)
            module("attention_flash_backward", len(works) * self.G * parts, 32 * warps, self.q, self.k, self.v, self.dout, lse,
                   delta, table, self.dq, self.dk, self.dv, sums, key_sums, state, len(works), parts, together, tiles, self.T, self.Q,
                   self.G, self.scale, shared=shared)
        return launch

    def hopper_backward(self, parts=None, together=None, shares=None):
        parts = parts or self.Q // self.G
        clusters = torch.cuda.get_device_properties(0).multi_processor_count // 2
        # As much work side by side as the longest item for nine clusters of ten; without Swift's limit of memory for shares.
        pairs, longest = sum(s[1] * max(0, 2 * s[3] - s[1]) // 2 for s in self.spans), 256 * max(s[1] for s in self.spans)
        units = parts * self.G
        fills = lambda n: units % n == 0 and 10 * n * pairs >= 9 * clusters * longest
        together = together or next(filter(fills, range(min(2, units), units + 1)), units)
        works, tiles, parts, together = self.key_blocks(256, 64, parts, together)
        # Parts that run side by side have sums of dk and dv of their own.
        shares = shares or min(parts, ceil_div(together, self.G))
        table, items = self.table(works), len(works) * self.G
        nan = lambda *size: torch.full(size, float("nan"), device="cuda")
        lse, delta = nan(self.Q, self.T), nan(self.Q, self.T)
        sums = nan(self.Q, self.T, self.D)
        key_sums = nan(2 * items, shares, 4, 128, 64) if parts > 1 else None
        count = 1 + 2 * (tiles * self.Q + items * shares)
        state = torch.full((count,), -1, device="cuda", dtype=torch.int32)
        maps = (self.rows(self.q, self.Q, 64), self.rows(self.k, self.G, 128), self.rows(self.v, self.G, 128),
                self.rows(self.dout, self.Q, 64))
        module, around = Module("attention_sm90_backward"), Module("attention_sm90_finish")
        def launch():
            around("attention_sm90_delta", ceil_div(self.T * self.Q, 16), 256, self.o, self.dout, self.lse, lse, delta, state,
                   count, self.T, self.Q)
            module("attention_sm90_backward", 2 * min(clusters, items * parts), 384, *maps, lse, delta, table, self.dk, self.dv,
                   sums, key_sums, state, len(works), parts, shares, together, tiles, self.T, self.Q, self.G, self.scale,
                   shared=231168)
            around("attention_sm90_finish", len(works) * (self.Q + (32 * self.G if parts > 1 else 0)), 256, sums, key_sums, table,
                   self.dq, self.dk, self.dv, len(works), shares, self.T, self.Q, self.G, self.scale)
        return launch

    def plain(self):
        table, n = self.table([(*s, 0, 0, 0, 0) for s in self.spans]), len(self.spans)
        module = Module("attention_plain", HALF=int(self.dtype == bf16), HEAD=self.D)
        return lambda: module("attention_plain", ceil_div(self.T * self.Q, 8), 256, self.q, self.k, self.v, self.o, self.lse,
                              table, n, self.T, self.Q, self.G, self.scale)

    def plain_backward(self):
        table, n = self.table([(*s, 0, 0, 0, 0) for s in self.spans]), len(self.spans)
        module = Module("attention_plain", HALF=int(self.dtype == bf16), HEAD=self.D)
        def launch():
            module("attention_plain_queries", ceil_div(self.T * self.Q, 8), 256, self.q, self.k, self.v, self.o, self.lse,
                   self.dout, table, self.dq, n, self.T, self.Q, self.G, self.scale)
            module("attention_plain_keys", ceil_div(self.U * self.G, 8), 256, self.q, self.k, self.v, self.o, self.lse,
                   self.dout, table, self.dk, self.dv, n, self.U, self.Q, self.G, self.scale)
        return launch

    def reference(self):
        """In double; the gradients from the formula, dk and dv added to what stood there."""
        f = lambda x: x.double()
        o, dq = torch.zeros_like(f(self.q)), torch.zeros_like(f(self.q))
        dk, dv = f(self.dk0).clone(), f(self.dv0).clone()
        lse = torch.full((self.T, self.Q), -float("inf"), device="cuda", dtype=torch.float64)
        group = self.Q // self.G
        for qs, qc, ks, kc in self.spans:
            i = torch.arange(qc, device="cuda")[:, None]
            hidden = torch.arange(kc, device="cuda")[None] > kc - qc + i
            for h in range(self.Q):
                q, k, v = f(self.q[qs:qs + qc, h]), f(self.k[ks:ks + kc, h // group]), f(self.v[ks:ks + kc, h // group])
                dout = f(self.dout[qs:qs + qc, h])
                s = (self.scale * q @ k.T).masked_fill(hidden, -float("inf"))
                l = torch.logsumexp(s, 1) if kc else torch.full((qc,), -float("inf"), device="cuda", dtype=torch.float64)
                p = torch.exp(s - l.masked_fill(l == -float("inf"), 0)[:, None])
                o[qs:qs + qc, h], lse[qs:qs + qc, h] = p @ v, l
                ds = p * (dout @ v.T - (dout * (p @ v)).sum(1, keepdim=True))
                dq[qs:qs + qc, h] = self.scale * ds @ k
                dk[ks:ks + kc, h // group] += self.scale * ds.T @ q
                dv[ks:ks + kc, h // group] += p.T @ dout
        return dict(o=o, lse=lse, dq=dq, dk=dk - f(self.dk0), dv=dv - f(self.dv0))


def error(got, expected):
    """Relative in norm (of elements of 0.02 at least); infinite where only one side is finite."""
    blind = torch.isinf(expected)
    if not torch.equal(got[blind].double(), expected[blind]): return float("inf")
    got, expected = got[~blind].double(), expected[~blind]
    return ((got - expected).norm() / expected.norm().clamp_min(0.02 * got.numel() ** 0.5)).item() if got.numel() else 0.0


def compare(a, forward, backward, tolerance):
    """Errors, whether the row behind is untouched and whether a second run gives the same bytes."""
    expected, runs = a.reference(), []
    names = ("o", "lse", "dq", "dk", "dv") if backward else ("o", "lse")
    for _ in range(2):
        a.clear()
        forward()
        if backward: backward()
        torch.cuda.synchronize()
        runs.append({n: getattr(a, n).clone() for n in names})
    got = runs[0]
    # What was added, from what stands there: the roundings of the sum itself are allowed for.
    value = dict(got)
    if backward:
        for n, before in (("dk", a.dk0), ("dv", a.dv0)): value[n] = got[n].double() - torch.cat([before, before[:1]]).double()
    errors = {n: error(value[n][:-1], expected[n]) for n in names}
    same = all(torch.equal(runs[0][n][:-1], runs[1][n][:-1]) for n in names)
    kept = all(torch.isnan(got[n][-1].float()).all().item() for n in names)
    zero = all(error(torch.zeros_like(expected[n]), expected[n]) > tolerance for n in names if (expected[n].abs() > 1e-9).any())
    good = all(e < tolerance for e in errors.values()) and same and kept and zero
    return good, " ".join(f"{n} {e:.1e}" for n, e in errors.items()) + f" same {same} kept {kept} zeros-fail {zero}"


def packed(lengths, earlier=None):
    spans, t, u = [], 0, 0
    for i, n in enumerate(lengths):
        keys = n + (earlier[i] if earlier else 0)
        spans.append((t, n, u, max(0, keys)))
        t, u = t + n, u + max(0, keys)
    return spans


CASES = {
    "packed": packed([1, 7, 33, 257, 1024]),
    "tile": packed([70, 33, 200, 1], [260, 0, 813, 128]),
    "one": packed([1]),
    "blind": packed([200, 5, 40], [-150, 3, -39]),
}


def check():
    bad = 0
    def case(name, make):
        nonlocal bad
        try:
            good, text = make()
        except Exception as e:
            good, text = False, repr(e)[:300]
        bad += not good
        print("ok  " if good else "FAIL", name, text, flush=True)
    for D in (64, 128, 192, 256):
        for Q, G in ((4, 4), (8, 2), (8, 1)):
            for spans in CASES:
                if D > 128 and (Q, G) != (8, 2): continue
                a = Attention(CASES[spans], Q, G, D)
                case(f"flash D {D} {Q}/{G} {spans}", lambda: compare(a, a.flash(), a.flash_backward(), 2e-2))
    for Q, G in ((4, 4), (8, 2), (8, 1)):
        for spans in CASES:
            a = Attention(CASES[spans], Q, G, 128)
            case(f"hopper {Q}/{G} {spans}", lambda: compare(a, a.hopper(), a.hopper_backward(), 2e-2))
    a = Attention(CASES["tile"], 8, 2, 128)
    for parts in (1, 2, 4):
        case(f"hopper parts {parts}", lambda: compare(a, a.hopper(together=parts), a.hopper_backward(parts=parts), 2e-2))
        case(f"flash parts {parts}", lambda: compare(a, a.flash(), a.flash_backward(parts=parts), 2e-2))
    for D in (64, 128, 192):
        a = Attention(CASES["packed"], 8, 2, D)
        case(f"flash small D {D}", lambda: compare(
            a, a.flash(**SMALL_FORWARD[D]), a.flash_backward(**SMALL_BACKWARD[D]), 2e-2))
    a = Attention(CASES["packed"], 8, 2, 256)
    case("flash small D 256", lambda: compare(a, a.flash(**SMALL_FORWARD[256]), a.flash_backward(), 2e-2))
    for dtype, D in ((torch.float32, 64), (torch.float32, 128), (torch.float32, 256), (bf16, 80), (bf16, 5)):
        tolerance = 2e-2 if dtype == bf16 else 1e-4
        for spans in ("packed", "tile", "blind"):
            a = Attention(CASES[spans], 6, 2, D, dtype)
            case(f"plain {dtype} D {D} {spans}", lambda: compare(a, a.plain(), a.plain_backward(), tolerance))
    print("bad", bad, flush=True)


def milliseconds(launch, count):
    launch()
    times = []
    for _ in range(5):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        for _ in range(count): launch()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b) / count)
    return sorted(times)[2]


def rival(a, name):
    """torch's attention on the same tensors, one span."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    backend = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[name]
    q, k, v, dout = (x.transpose(0, 1)[None] for x in (a.q, a.k, a.v, a.dout))
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    def forward():
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=a.scale, enable_gqa=True)
    o = forward()
    return forward, lambda: torch.autograd.grad(o, (q, k, v), dout, retain_graph=True)


def qwen(lengths, earlier=None): return packed(lengths, earlier), 32, 4, 128


SHAPES = {**{f"qwen{n // 1024}k": qwen([n]) for n in (1024, 2048, 4096, 8192, 16384)},
          "tile4k": qwen([4096], [4096]), "tile16k": qwen([16384], [16384]),
          "nine": qwen([4000, 1800, 900, 600, 400, 250, 150, 50, 42]), "16x512": qwen([512] * 16),
          "oss8k": (packed([8192]), 64, 8, 64), "glm8k": (packed([8192]), 20, 20, 256)}


def bench(names, variants):
    """`variants`: by shape, pairs of "flash" or "flash_backward" and options to try besides."""
    for name in names:
        spans, Q, G, D = SHAPES[name]
        a = Attention(spans, Q, G, D)
        flops = sum(4 * D * Q * (n * k - n * n / 2) for _, n, _, k in spans)
        count = max(1, int(2e12 / flops / 2))
        def show(what, launch, factor):
            try:
                t = milliseconds(launch(), count)
                print(f"{name:8} {what:40} {t:7.3f} ms {factor * flops / t / 1e9:6.0f} TFLOP/s", flush=True)
            except Exception as e:
                print(name, what, repr(e)[:300], flush=True)
        for r in ("flash", "cudnn") if len(spans) == 1 and spans[0][1] == spans[0][3] else ():
            show("torch " + r, lambda: rival(a, r)[0], 1)
            show("torch " + r + " backward", lambda: rival(a, r)[1], 2.5)
        show("ours", a.flash, 1)
        show("ours backward", a.flash_backward, 2.5)
        if D == 128:
            show("ours on Hopper", a.hopper, 1)
            show("ours backward on Hopper", a.hopper_backward, 2.5)
        for kind, options in variants.get(name, []):
            show(f"{kind} {options}", lambda: getattr(a, kind)(**options), 1 if kind == "flash" else 2.5)


if __name__ == "__main__":
    if sys.argv[1] == "check": check()
    else: bench(sys.argv[2:] or ["qwen2k", "qwen8k", "oss8k"], {})
