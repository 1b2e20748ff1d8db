"""The kernels of the router, of the loss and of the optimizer against float64, and their rates: python3 loss.py [--rates]"""
import sys
import numpy as np
import torch
from lab import Module

nan, bf16, f32, i32 = float("nan"), torch.bfloat16, torch.float32, torch.int32
failures = 0


def error(x, reference):
    x, reference = x.double(), reference.double()
    return ((x - reference).norm() / reference.norm().clamp_min(1e-300)).item()


def report(name, good, **numbers):
    global failures
    failures += not good
    print("ok  " if good else "FAIL", name, " ".join(f"{k} {v:.1e}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items()),
          flush=True)


def check(case):
    try:
        case()
    except Exception as e:
        report(case.__doc__ or "case", False, error=repr(e)[:300])


def poison(*shape, dtype=f32):
    """One row more than needed, all NaN (or a number that no id has)."""
    shape = (shape[0] + 1,) + shape[1:]
    return torch.full(shape, nan if dtype.is_floating_point else 0x7ff7, device="cuda", dtype=dtype)


def untouched(*tensors):
    return all(bool((t[-1].isnan() if t.dtype.is_floating_point else t[-1] == 0x7ff7).all()) for t in tensors)


def same(a, b):
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(whole), b.contiguous().view(whole))


# MARK: Router

def route(logits, K, normalizes):
    T, E = logits.shape
    half = int(logits.dtype == bf16)
    p, lse, expert, weight = poison(T, E), poison(T), poison(T, K, dtype=i32), poison(T, K)
    if T: Module("router", EXPERTS=E, TOP_K=K, HALF=half)(
        "route", -(-T // 8), 256, logits, p, lse, expert, weight, T, normalizes)
    return p, lse, expert, weight


def route_backward(routed, dweight, everywhere, z, dtype, normalizes):
    p, lse, expert, weight = routed
    T, E, K = p.shape[0] - 1, p.shape[1], expert.shape[1]
    d = poison(T, E, dtype=dtype)
    if T: Module("router", EXPERTS=E, TOP_K=K, HALF=int(dtype == bf16))(
        "route_backward", -(-T // 8), 256, p, lse, expert, weight, dweight, everywhere, z, d, T, normalizes)
    return d


def router_case(T, E, K, dtype, normalizes, auxiliary, levels=None):
    g = torch.Generator("cuda").manual_seed(T + E)
    logits = torch.randn(T, E, device="cuda", generator=g) * 3
    if levels: logits = (logits * levels).round() / levels
    logits = logits.to(dtype)
    routed = route(logits, K, normalizes)
    p, lse, expert, weight = (t[:T] for t in routed)
    x = logits.double().requires_grad_()
    q, chosen = x.softmax(1), expert.long().clamp(0, E - 1)
    w = q.gather(1, chosen)
    if normalizes: w = w / w.sum(1, keepdim=True)
    # The order must be that of the kernel's own probabilities, ties to the lowest.
    order = torch.equal(chosen, p.sort(dim=1, descending=True, stable=True).indices[:, :K])
    errors = dict(p=error(p, q), lse=error(lse, x.logsumexp(1)), weight=error(weight, w))
    dweight = torch.randn(T, K, device="cuda", generator=g)
    everywhere = torch.randn(E, device="cuda", generator=g) * 0.1 if auxiliary else None
    z = 0.01 if auxiliary else 0.0
    total = (w * dweight.double()).sum()
    if auxiliary: total = total + (q * everywhere.double()).sum() + z / 2 * x.logsumexp(1).square().sum()
    total.backward()
    d = route_backward(routed, dweight, everywhere, z, dtype, normalizes)
    tolerance = 4e-3 if dtype == bf16 else 2e-5
    errors["dlogits"] = error(d[:T], x.grad)
    again = route(logits, K, normalizes)
    repeats = all(same(a[:T], b[:T]) for a, b in zip(routed, again)) and same(
        d[:T], route_backward(again, dweight, everywhere, z, dtype, normalizes)[:T])
    kept = untouched(*routed, d)
    zeros = error(torch.zeros_like(d[:T]), x.grad) > 0.5 or K == 1 or T == 0
    good = order and repeats and kept and zeros and max(errors[k] for k in ("p", "lse", "weight")) < 2e-5
    good = good and (errors["dlogits"] < tolerance or (K == 1 and normalizes and not auxiliary))
    report(f"router T {T} E {E} K {K} {str(dtype)[6:]} norm {normalizes} aux {int(auxiliary)} levels {levels}", good,
           order=order, same=repeats, kept=kept, **errors)


def cuts(counts, most, unit):
    """[expert, first row, rows] of tiles of at most `most` rows; those of an expert differ by one unit of rows, if one is given"""
    start, tiles = 0, []
    for expert, count in enumerate(counts):
        n, row = -(-count // most), 0
        units = -(-count // unit) if unit else 0
        for i in range(n):
            rows = min(unit * (units // n + (i < units % n)) if unit else most, count - row)
            tiles.append([expert, start + row, rows, 0])
            row += rows
        start += count
    return torch.tensor(tiles, device="cuda", dtype=i32).view(-1, 4)


def order_case(T, K, E, offset):
    """routing"""
    ids = torch.randint(0, E, (T * K + offset,), device="cuda", dtype=i32)[offset:]
    if T > 9: ids[T // 2 * K:] = 1  # crowded
    R = T * K
    order, position, start = poison(R, dtype=i32), poison(R, dtype=i32), poison(E + 1, dtype=i32)
    tiles, parts = (poison(4 * (R // n + E), dtype=i32) for n in (128, 192))
    tile_count, part_count = poison(1, dtype=i32), poison(1, dtype=i32)
    Module("routing", EXPERTS=E)("routing", max(1, -(-R // 1024)), 1024, ids, order, position, start, tiles, tile_count, parts,
                                 part_count, R)
    expected = ids.long().sort(stable=True).indices
    inverse = torch.empty_like(expected).scatter_(0, expected, torch.arange(R, device="cuda"))
    counts = torch.bincount(ids.long(), minlength=E)
    good = torch.equal(order[:R].long(), expected) and torch.equal(position[:R].long(), inverse)
    good = good and torch.equal(start[1:-1].long(), counts.cumsum(0)) and start[0].item() == 0
    for found, number, want in ((tiles, tile_count, cuts(counts.tolist(), 128, 0)), (parts, part_count, cuts(counts.tolist(), 192, 16))):
        n = number[0].item()
        good = good and n == len(want) and torch.equal(found[:4 * n].view(-1, 4), want)
    report(f"routing T {T} K {K} E {E} offset {offset}", good and untouched(order, position, start, tiles, parts))


def router_edges():
    """router: NaN, infinity, nothing"""
    logits = torch.randn(9, 128, device="cuda", dtype=bf16)
    logits[3, 70] = nan; logits[5, 7] = float("inf"); logits[7, :] = -float("inf"); logits[8, 5:] = -float("inf")
    p, lse, expert, weight = route(logits, 8, 1)
    for row in (3, 5, 7):
        report(f"router row {row} not finite", expert[row].tolist() == list(range(8)) and bool(weight[row].isnan().all()))
    report("router mostly -infinity", expert[8].tolist() == expert[8, :5].tolist() + [5, 6, 7] and bool(weight[8, 5:].eq(0).all())
           and abs(weight[8].sum().item() - 1) < 1e-5)


# MARK: Cross-entropy

def losses(logits, target, scale, loss=None):
    loss = poison(len(target)) if loss is None else loss
    Module("cross_entropy", HALF=int(logits.dtype == bf16))(
        "cross_entropy", len(target), 1024, logits, target, loss, logits.shape[1], int(scale is not None), float(scale or 0))
    return loss


def loss_case(rows, V, dtype, size=1.0, edges=False):
    g = torch.Generator("cuda").manual_seed(rows + V)
    logits = poison(rows, V, dtype=dtype)
    logits[:rows] = torch.randn(rows, V, device="cuda", generator=g) * size
    target = torch.randint(0, V, (rows,), device="cuda", generator=g, dtype=i32)
    target[::3] = -1
    if rows == 1: target[0] = V - 1
    if edges: logits[1, : V // 2] = -float("inf"); target[1] = V - 1; logits[2, 0] = float("inf"); logits[4, 1] = nan; target[5] = V
    before, scale = logits.clone(), 1 / 37
    only = losses(logits, target, None)
    still = same(before, logits)
    loss = losses(logits, target, scale)
    x = before[:rows].double()
    live = (target >= 0) & (target < V)
    if edges: live[2] = live[4] = False
    wanted = torch.where(live, target, 0).long()
    expected = torch.where(live, x.logsumexp(1) - x.gather(1, wanted[:, None])[:, 0], 0)
    d = (x.softmax(1).scatter_add_(1, wanted[:, None], -torch.ones_like(x[:, :1]))) * scale
    d = torch.where(live[:, None], d, 0)
    got = logits[:rows]
    if edges:
        bad = [2, 4, 5]
        report("loss: not finite, or no such target", bool(loss[bad].isnan().all() and logits[4].isnan().all() and logits[5].isnan().all()))
        loss[bad] = only[bad] = 0; got = got.clone(); got[bad] = 0
    errors = dict(loss=error(loss[:rows], expected), d=error(got, d))
    dead = bool((logits[:rows][target < 0] == 0).all() and (loss[:rows][target < 0] == 0).all())
    repeat = before.clone()
    again = losses(repeat, target, scale)
    repeats = same(repeat, logits) and (edges or same(again, loss)) and same(only, loss)
    kept = untouched(logits, loss, only)
    tolerance = 4e-3 if dtype == bf16 else 2e-5
    zeros = error(torch.zeros_like(d), d) > tolerance or V == 1
    report(f"loss {rows} x {V} {str(dtype)[6:]} size {size}", errors["loss"] < 5e-6 and errors["d"] < tolerance and dead and repeats
           and kept and still and zeros, dead=dead, same=repeats, kept=kept, untouched=still, **errors)


# MARK: Optimizer

class Table:
    """`TensorTables` of the product: entries, owners of chunks, partial sums, sums."""
    entry = np.dtype([(n, "u8") for n in ("value", "gradient", "first", "second", "first_scale", "second_scale", "rest", "count")] + [("decay", "f4"), ("chunk", "i4")])

    def __init__(self, lists, decays, chunk):
        self.chunk = chunk
        entries, owners = np.zeros(len(lists), self.entry), []
        for i, tensors in enumerate(lists):
            addresses = [t.data_ptr() for t in tensors] + [0] * (7 - len(tensors))
            count = tensors[0].numel()
            entries[i] = (*addresses, count, decays[i], len(owners))
            owners += [i] * -(-count // chunk)
        self.chunks, self.tensors = len(owners), len(lists)
        self.entries = torch.from_numpy(entries.view(np.uint8)).cuda()
        self.owners = torch.tensor(owners, dtype=i32, device="cuda")
        self.partials, self.sums = (torch.full((n + 1,), nan, dtype=torch.float64, device="cuda") for n in (self.chunks, self.tensors))
        self.module = Module("optimizer")

    def each_chunk(self, entry, *arguments):
        if self.chunks: self.module(entry, self.chunks, 256, self.entries, self.owners, self.chunk, *arguments)

    def zero(self): self.each_chunk("zero_all")

    def squares(self):
        self.each_chunk("square_partials", self.partials)
        self.module("square_sums", self.tensors, 256, self.entries, self.chunk, self.partials, self.sums)
        return self.sums

    def adamw(self, step, lr=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, gradient_scale=0.5, entry="adamw"):
        b1, b2, lr32 = (float(np.float32(x)) for x in (beta1, beta2, lr))
        self.numbers = [np.float32(x) for x in (lr, beta1, beta2, lr32 / (1 - b1 ** step), 1 / (1 - b2 ** step) ** 0.5, epsilon, gradient_scale)]
        self.each_chunk(entry, *(float(x) for x in self.numbers))


def optimizer_case():
    """optimizer"""
    sizes = [0, 1, 3, 7, 16384, 16385, 33, 0, 257, 100003, 65536, 4096 * 3 + 2]
    rng = np.random.default_rng(0)
    buffers, lists, decays = [], [], []
    for i, n in enumerate(sizes):
        offset = 1 if i % 4 == 3 else 4  # not aligned to 16 bytes, or aligned
        tensors = []
        for kind in range(4):
            b = torch.full((n + 8,), nan, device="cuda")
            v = b[offset:offset + n]
            x = rng.standard_normal(n).astype(np.float32)
            v.copy_(torch.from_numpy(np.abs(x) * 0.01 if kind == 3 else x))
            buffers.append((b, offset, n)); tensors.append(v)
        lists.append(tensors); decays.append(0.1 * (i % 3))
    host = [[t.cpu().numpy() for t in ts] for ts in lists]
    margins = lambda: all(bool(b[:o].isnan().all() and b[o + n:].isnan().all()) for b, o, n in buffers)
    for chunk in (16384, 64):
        table = Table(lists, decays, chunk)
        sums = table.squares().clone()
        expected = [float((h[0].astype(np.float64) ** 2).sum()) for h in host]
        worst = max(abs(a - b) / max(b, 1e-300) for a, b in zip(sums.tolist(), expected) if b or a)
        alone = all(Table([ts], [0], chunk).squares()[0].item() == s for ts, s in zip(lists, sums.tolist()))
        report(f"squares chunk {chunk}", worst < 1e-13 and alone and same(sums, table.squares()) and bool(sums[-1].isnan())
               and bool(table.partials[-1].isnan()), worst=worst, alone=alone)
    table = Table(lists, decays, 16384)
    f = np.float32
    for step in (1, 2, 1000):
        table.adamw(step)
        lr, b1, b2, size, root, eps, scale = table.numbers
        exact, worst = True, 0.0
        for h, ts, wd in zip(host, lists, decays):
            old = [x.astype(np.float64) for x in h]
            decay = f(1 - float(lr) * float(f(wd)))
            g = h[1] * scale
            h[2] = h[2] * b1 + g * (f(1) - b1)
            h[3] = h[3] * b2 + g * g * (f(1) - b2)
            h[0] = h[0] * decay - h[2] / (np.sqrt(h[3]) * root + eps) * size
            exact &= all(np.array_equal(t.cpu().numpy().view(np.int32), x.view(np.int32)) for t, x in zip(ts, h))
            if len(h[0]):
                g, B1, B2 = old[1] * 0.5, float(b1), float(b2)
                m, v = old[2] * B1 + g * (1 - B1), old[3] * B2 + g * g * (1 - B2)
                p = old[0] * (1 - float(lr) * float(f(wd))) - float(lr) / (1 - B1 ** step) * m / (np.sqrt(v / (1 - B2 ** step)) + 1e-8)
                worst = max([worst] + [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in
                                       ((ts[0].cpu().numpy(), p), (ts[2].cpu().numpy(), m), (ts[3].cpu().numpy(), v))])
        report(f"adamw step {step}", exact and worst < 1e-6 and margins(), same_bits_as_numpy=exact, worst=float(worst), margins=margins())
    table.zero()
    report("zero", all(bool((ts[0] == 0).all()) for ts in lists) and margins() and all(
        np.array_equal(ts[1].cpu().numpy(), h[1]) for ts, h in zip(lists, host)))


def moment_codes(signed):
    """Values and the bounds between them (MomentTable.swift), in float32."""
    f, top = np.float32, 6 if signed else 7
    def magnitude(place):
        decade = place.bit_length() - 1
        if decade > top: return f(1)
        power = f(1)
        for _ in range(decade, top): power *= f(0.1)
        return power * (f(0.1) + f(0.9) * f((place + 0.5) / (1 << decade) - 1))
    if signed: values = [-magnitude(127 - c) for c in range(127)] + [f(0)] + [magnitude(c - 127) for c in range(128, 256)]
    else: values = [f(0)] + [magnitude(c + 1) for c in range(1, 256)]
    values = np.array(values, f)
    bounds = (values[:-1] + values[1:]) * f(0.5)
    if not signed: bounds[0] = 0
    return values, bounds


def encode_moment(x, bounds):
    f = np.float32
    scale = np.array([np.abs(x[i:i + 256]).max() for i in range(0, len(x), 256)], f)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scale >= np.finfo(f).tiny, f(1) / scale, f(0)).astype(f)
    return np.searchsorted(bounds, x * inverse.repeat(256)[:len(x)], side="left").astype(np.uint8), scale


def adamw_8bit_case():
    """adamw_8bit"""
    f, rng = np.float32, np.random.default_rng(1)
    sizes, kinds = [1, 3, 255, 256, 257, 0, 8192, 100003, 4096 * 3 + 2], (f, f, np.uint8, np.uint8, f, f)
    tables, buffers, lists, host = [moment_codes(True), moment_codes(False)], [], [], []
    for i, n in enumerate(sizes):
        blocks, offset = -(-n // 256), 1 if i % 4 == 3 else 16
        arrays = [rng.standard_normal(n).astype(f), np.zeros(n, f)] + [np.zeros(m, k) for m, k in zip((n, n, blocks, blocks), kinds[2:])]
        tensors = []
        for x in arrays:
            b = torch.full((len(x) + 32,), 77, device="cuda", dtype=torch.uint8 if x.dtype == np.uint8 else f32)
            b[offset:offset + len(x)] = torch.from_numpy(x)
            buffers.append((b, offset, len(x))); tensors.append(b[offset:offset + len(x)])
        host.append(arrays); lists.append(tensors)
    for chunk in (8192, 512):
        table = Table(lists, [0.1] * len(lists), chunk)
        for step in (1, 2, 1000):
            for h, ts in zip(host, lists):
                n = len(h[0])
                h[1] = (rng.standard_normal(n) * 10.0 ** rng.uniform(-9, 2, n)).astype(f)
                if n > 1024: h[1][256:512] = 0; h[1][512:768] *= f(1e-22); h[1][768:1024] *= f(1e-30)
                ts[1].copy_(torch.from_numpy(h[1]))
            table.adamw(step, entry="adamw_8bit")
            lr, b1, b2, size, root, eps, scale = table.numbers
            exact = True
            for h, ts in zip(host, lists):
                n, g = len(h[0]), h[1] * scale
                m, v = (t[0][h[2 + k]] * h[4 + k].repeat(256)[:n] for k, t in enumerate(tables))
                m = m * b1 + g * (f(1) - b1)
                v = v * b2 + g * g * (f(1) - b2)
                h[0] = h[0] * f(1 - float(lr) * float(f(0.1))) - m / (np.sqrt(v) * root + eps) * size
                for k, x in enumerate((m, v)): h[2 + k], h[4 + k] = encode_moment(x, tables[k][1])
                exact &= all(np.array_equal(t.cpu().numpy().view(np.uint8), x.view(np.uint8)) for t, x in zip(ts, h))
            margins = all(bool((b[:o] == 77).all() and (b[o + n:] == 77).all()) for b, o, n in buffers)
            report(f"adamw_8bit chunk {chunk} step {step}", exact and margins, same_bits_as_numpy=exact, margins=margins)


def halves_case():
    """masters in halves"""
    rng, f = np.random.default_rng(2), np.float32
    sizes = [1, 3, 255, 257, 0, 8192, 100003, 4096 * 3 + 2]
    for eight in (False, True):
        floats, splits, buffers = [], [], []
        def place(x, offset, dtype):
            b = torch.full((len(x) + 32,), 77, device="cuda", dtype=dtype)
            b[offset:offset + len(x)] = torch.from_numpy(x)
            buffers.append((b, offset, len(x)))
            return b[offset:offset + len(x)]
        for i, n in enumerate(sizes):
            offset = 1 if i % 4 == 3 else 16
            x, blocks = rng.standard_normal(n).astype(f), -(-n // 256)
            if n > 300: x[:6] = np.array([0x7f7fffff, 0x3f808000, 0x3f818000, 0xff800000, 0x80000001, 0x7fffffff], np.uint32).view(f)
            moment, kind = (torch.uint8, np.uint8) if eight else (f32, f)
            def rest(): return [place(np.zeros(n, kind), offset, moment), place(np.zeros(n, kind), offset, moment)] + (
                [place(np.zeros(blocks, f), offset, f32) for _ in range(2)] if eight else [])
            g = place(x, offset, f32)
            floats.append([place(x, offset, f32), g] + rest())
            halves = [place(np.zeros(n, np.int16), offset, torch.int16) for _ in range(2)]
            splits.append([halves[0], g] + rest() + ([] if eight else [None, None]) + [halves[1]])
        none = torch.zeros(1, device="cuda")
        splits = [[none if t is None else t for t in ts] for ts in splits]
        def joined():
            out = []
            for ts in splits:
                upper, lower = ts[0].cpu().numpy(), ts[-1].cpu().numpy()
                out.append(((upper.astype(np.uint16).astype(np.int64) << 16) + lower.astype(np.int64) & 0xffffffff).astype(np.uint32))
            return out
        for chunk in (8192, 512):
            a, b = Table(floats, [0.1] * len(sizes), chunk), Table(splits, [0.1] * len(sizes), chunk)
            # The gradients still hold the values.
            for ts, x in zip(floats, [ts[0].clone() for ts in floats]): ts[1].copy_(x)
            b.each_chunk("split_all")
            canonical = lambda x: np.where(np.isnan(x.view(f)), np.uint32(0x7fc00000), x)
            exact = all(np.array_equal(canonical(ts[0].cpu().numpy().view(np.uint32)), canonical(x)) for ts, x in zip(floats, joined()))
            nearest = all(bool(((u.view(bf16).float() - ts[0].bfloat16().float()).abs() <= ts[0].abs() * 2 ** -8).logical_or(
                ts[0].isnan() | ts[0].isinf() | (ts[0].abs() > 3e38)).all()) for ts, (u, *_) in zip(floats, splits))
            for step in (1, 2, 1000):
                for ts in floats: ts[1].copy_(torch.from_numpy(rng.standard_normal(ts[1].numel()).astype(f)))
                for ts, us in zip(floats, splits): us[1] = ts[1]
                a.adamw(step, entry="adamw_8bit" if eight else "adamw")
                b.adamw(step, entry="adamw_8bit_split" if eight else "adamw_split")
                exact &= all(np.array_equal(canonical(ts[0].cpu().numpy().view(np.uint32)), canonical(x)) for ts, x in zip(floats, joined()))
                exact &= all(same(p, q) for ts, us in zip(floats, splits) for p, q in zip(ts[2:4], us[2:4]))
            margins = all(bool((b[:o] == 77).all() and (b[o + n:] == 77).all()) for b, o, n in buffers)
            report(f"halves, {'8 bits' if eight else 'float32'}, chunk {chunk}", exact and nearest and margins, exact=exact, nearest=nearest, margins=margins)


# MARK: Rates

def times(works, rounds=5, inner=2):
    """Median ms of graph replays, the rivals in turns."""
    graphs = {}
    for name, work in works.items():
        work(); torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for _ in range(inner): work()
    samples = {n: [] for n in works}
    for _ in range(rounds):
        for n, graph in graphs.items():
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record(); graph.replay(); b.record(); torch.cuda.synchronize()
            samples[n].append(a.elapsed_time(b) / inner)
    return {n: sorted(s)[rounds // 2] for n, s in samples.items()}


def show(title, results, byte_count):
    for name, ms in results.items():
        print(f"{title} {name}: {ms * 1e3:.1f} us, {byte_count(name) / ms / 1e6:.0f} GB/s", flush=True)


def copy_rate():
    """copy"""
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda"); b = torch.empty_like(a)
    show("1 GiB", times({"copy": lambda: b.copy_(a)}, inner=5), lambda n: 2 << 30)


def router_rates():
    """router rates"""
    T, E, K = 4096, 128, 8
    logits = torch.randn(T, E, device="cuda", dtype=bf16)
    routed = route(logits, K, 1)
    p, lse, expert, weight = routed
    d, dw = poison(T, E, dtype=bf16), torch.randn(T, K, device="cuda")
    tables = [torch.empty(n, dtype=i32, device="cuda") for n in (
        T * K, T * K, E + 1, 4 * (T * K // 128 + E), 1, 4 * (T * K // 192 + E), 1)]
    m = Module("router", EXPERTS=E, TOP_K=K, HALF=1)
    show(f"T {T} E {E} K {K}", times({
        "route": lambda: m("route", T // 8, 256, logits, p, lse, expert, weight, T, 1),
        "routing": lambda: Module("routing", EXPERTS=E)("routing", T * K // 1024, 1024, expert, *tables, T * K),
        "route_backward": lambda: m("route_backward", T // 8, 256, p, lse, expert, weight, dw, None, 0.0, d, T, 1)}, inner=20),
        lambda n: 12 * T * K if n == "routing" else 6 * T * E)


def loss_rates():
    """loss rates"""
    for rows, V in ((2048, 151936), (512, 151936), (2048, 151937)):
        logits = torch.randn(rows, V, device="cuda", dtype=bf16)
        target = torch.randint(0, V, (rows,), device="cuda", dtype=i32)
        loss = poison(rows)
        show(f"{rows} x {V}", times({
            "loss and gradient": lambda: losses(logits, target, 1e-3, loss), "loss only": lambda: losses(logits, target, None, loss)}),
            lambda n: (2 if "only" in n else 4) * rows * V)
        del logits


def optimizer_rates():
    """optimizer rates"""
    layer = [128 * 16 * 2048, 128 * 1536 * 16, 128 * 16 * 768, 128 * 2048 * 16]
    for i, o in ((2048, 4096), (2048, 512), (2048, 512), (4096, 2048)): layer += [16 * i, 16 * o]
    lists = [[torch.full((n,), 1e-3, device="cuda") for _ in range(4)] for _ in range(48) for n in layer]
    count = sum(ts[0].numel() for ts in lists)
    t = Table(lists, [0.01] * len(lists), 8192)
    works = {"adamw": lambda: t.adamw(3), "squares": t.squares, "zero": t.zero}
    p, g, m, v = ([ts[k] for ts in lists] for k in range(4))
    steps = [torch.tensor(3.0, device="cuda") for _ in p]
    works["adamw, torch fused"] = lambda: torch._fused_adamw_(
        p, g, m, v, [], steps, lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.01, eps=1e-8, amsgrad=False, maximize=False)
    byte = lambda n: torch.zeros(n, device="cuda", dtype=torch.uint8)
    eight = Table([ts[:2] + [byte(n), byte(n)] + [torch.zeros(-(-n // 256), device="cuda") for _ in range(2)]
                   for ts in lists for n in [ts[0].numel()]], [0.01] * len(lists), 8192)
    works["adamw_8bit"] = lambda: eight.adamw(3, entry="adamw_8bit")
    half = lambda n: torch.zeros(n, device="cuda", dtype=torch.int16)
    halves = Table([[half(n)] + ts[1:4] + [ts[3], ts[3], half(n)] for ts in lists for n in [ts[0].numel()]], [0.01] * len(lists), 8192)
    works["adamw_split"] = lambda: halves.adamw(3, entry="adamw_split")
    works["squares, torch foreach norm"] = lambda: torch._foreach_norm(g)
    works["zero, torch foreach"] = lambda: torch._foreach_zero_(p)
    show(f"{count / 1e6:.1f} M in {len(lists)} tensors", times(works), lambda n: count * (16 if "8bit" in n else 28 if "adamw" in n else 4))


torch.manual_seed(0)
for T, E, K, levels in ((4096, 128, 8, None), (4096, 128, 8, 1), (7, 5, 2, None), (33, 33, 1, None), (257, 1024, 16, None), (1, 32, 32, None),
                        (0, 128, 8, None), (1025, 64, 6, 2)):
    for dtype in (bf16, f32):
        for normalizes in (1, 0):
            def one(): router_case(T, E, K, dtype, normalizes, auxiliary=normalizes == 1 and T != 7, levels=levels)
            one.__doc__ = f"router {T} {E} {K}"
            check(one)
check(router_edges)
for T, K, E, offset in ((0, 8, 128, 0), (1, 1, 3, 0), (7, 5, 40, 1), (4096, 8, 128, 0), (5000, 6, 64, 2), (33, 8, 1024, 4)):
    check(lambda: order_case(T, K, E, offset))
for rows, V in ((7, 151936), (33, 151937), (257, 1003), (1, 5), (3, 8), (9, 1), (64, 32000), (5, 8191)):
    for dtype in (bf16, f32):
        def one(): loss_case(rows, V, dtype)
        one.__doc__ = f"loss {rows} {V}"
        check(one)
def large(): loss_case(17, 50001, bf16, size=30.0)
def edges(): loss_case(33, 4099, bf16, edges=True)
for case in (large, edges, optimizer_case, adamw_8bit_case, halves_case): check(case)
if "--rates" in sys.argv:
    for case in (copy_rate, router_rates, loss_rates, optimizer_rates): check(case)
print("failures", failures)
sys.exit(1 if failures else 0)
