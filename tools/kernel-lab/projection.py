"""The kernels of dense projections with adapters: `check` holds them against float64 (odd sizes, absent adapters, ranks, the same
bytes twice, rows behind each output untouched; zeros and shifted rows must fail), `bench TOKENS...` times them beside cuBLAS."""
import ctypes, sys, traceback
from concurrent.futures import ThreadPoolExecutor
import torch
from lab import Module, TensorMap, bf16

TOLERANCE = 8e-3
GRID = 132
# Columns of a tile, and the blocks of a cluster.
NARROW, WIDE = (128, 1), (256, 2)


def times(works, rounds=7):
    """Name -> median milliseconds of graph replays; the rivals take turns."""
    graphs, samples = {}, {n: [] for n in works}
    for n, work in works.items():
        work()
        torch.cuda.synchronize()
        graphs[n] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[n]): work()
    for _ in range(rounds):
        for n, graph in graphs.items():
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record(); graph.replay(); b.record(); torch.cuda.synchronize()
            samples[n].append(a.elapsed_time(b))
    return {n: sorted(s)[rounds // 2] for n, s in samples.items()}


def rand(*shape, std=1.0, g=None):
    return (torch.randn(*shape, device="cuda", generator=g) * std).to(bf16)


def poison(*shape, dtype=bf16):
    return torch.full(shape, float("nan"), device="cuda", dtype=dtype)


def low_shape(T, columns):
    """Rows of a block and depth of the ring, as LinearHopper.swift chooses them."""
    rows = 16 if T <= 16 * GRID else 32
    return rows, max(2, min(8, 204800 // (512 * (rows + columns))))


class Layers:
    """Layers that share an input x [T, I], of O_s outputs; those in `adapted` have an adapter of rank A."""

    def __init__(self, T, I, widths, A, adapted=None, seed=0, scale=2.0):
        g = torch.Generator("cuda").manual_seed(seed)
        self.T, self.I, self.widths, self.A, self.scale, self.n = T, I, widths, A, scale, len(widths)
        self.adapted = list(range(self.n)) if adapted is None else adapted
        self.x = rand(T, I, g=g)
        self.w = [rand(o, I, std=I ** -0.5, g=g) for o in widths]
        self.a = [rand(A, I, std=I ** -0.5, g=g) for _ in widths]
        self.b = [rand(o, A, std=A ** -0.5, g=g) for o in widths]
        self.dy = [rand(T, o, g=g) for o in widths]
        # One row more than needed: it must stay NaN.
        self.y = [poison(T + 1, o) for o in widths]
        self.dx = poison(T + 1, I)
        self.p, self.q = [poison(T + 1, A) for _ in widths], [poison(T + 1, A) for _ in widths]
        self.da = [torch.zeros(A, I, device="cuda") for _ in widths]
        self.db = [torch.zeros(o, A, device="cuda") for o in widths]
        self.maps = {}

    def three(self, things, none=None):
        return (list(things) + [none] * 3)[:3]

    def low(self, transposed):
        own = self.adapted
        if not own: return
        pick = lambda things: self.three([things[s] for s in own])
        if transposed:
            grid, count, sources, widths, matrices, outs = len(own), 1, pick(self.dy), [self.widths[s] for s in own], pick(self.b), pick(self.q)
        else:
            count = len(own) if len(own) * self.A <= 64 else 1
            grid, sources, widths = len(own) // count, [self.x] * 3, [self.I] * 3
            matrices, outs = pick(self.a), pick(self.p)
        rows, depth = low_shape(self.T, count * self.A)
        Module("projection_low", TRANSPOSED=int(transposed), RANK=self.A, COUNT=count, ROWS=rows, DEPTH=depth)(
            "projection_low", (-(-self.T // rows), grid), 256, *sources, *matrices, *outs, *(self.three(widths, 0)), self.T,
            self.scale, shared=512 * depth * (rows + count * self.A))

    def product(self, transposed, tile, residual=None):
        columns, cluster = tile
        key = (transposed, tile)
        if key not in self.maps:
            maps, I, A, T, box = [], self.I, self.A, self.T, [64, 64 if transposed else columns // cluster]
            for s in range(self.n):
                o = self.widths[s]
                a, k = (self.dy[s], o) if transposed else (self.x, I)
                maps += [TensorMap(a, [k, T], [64, 128]), TensorMap(self.w[s], [I, o], box)]
                p, m, size = (self.q[s], self.a[s], [I, A]) if transposed else (self.p[s], self.b[s], [A, o])
                maps += [TensorMap(p, [A, T], [64, 128]), TensorMap(m, size, box)]
            self.maps[key] = (maps + maps[:4] * 2)[:12]
        outs = self.three([self.dx] if transposed else self.y)
        Module("projection_sm90", TRANSPOSED=int(transposed), TILE=columns, CLUSTER=cluster, RANK=self.A)(
            "projection", GRID, 384, *self.maps[key], *outs, residual, self.T, self.I, *self.three(self.widths, 0),
            sum(1 << s for s in self.adapted), shared=232448)

    def gradients(self, adds=0):
        jobs = [(self.q[s], self.x, self.da[s], self.I, 0) for s in self.adapted]
        jobs += [(self.p[s], self.dy[s], self.db[s], self.widths[s], 1) for s in self.adapted]
        words = [(ctypes.c_uint64 * 16)(), (ctypes.c_uint64 * 16)()]
        for i, (u, v, m, width, major) in enumerate(jobs):
            words[i // 4][i % 4 * 4:i % 4 * 4 + 4] = [u.data_ptr(), v.data_ptr(), m.data_ptr(), width | major << 32]
        if jobs:
            pieces = sum(-(-j[3] // 128) for j in jobs)
            Module("projection_gradient", RANK=self.A)(
                "projection_gradient", (pieces, 8), 128, *words, self.T, adds, shared=2 * (16384 + 128 * self.A))


def error(value, reference):
    value = value.double()
    if value.numel() == 0: return 0.0
    return ((value - reference).norm() / reference.norm()).item() if torch.isfinite(value).all() else float("nan")


def check(T, I, widths, A, tile, adapted=None, residual=False, seed=1):
    e = Layers(T, I, widths, A, adapted, seed)
    d, adds = lambda t: t.double(), T % 2
    y0, dx0 = rand(T + 1, widths[0]), rand(T + 1, I)

    def run():
        for t in e.y + [e.dx] + e.p + e.q: t.fill_(float("nan"))
        for t in e.da + e.db: t.fill_(0.5 if adds else float("nan"))
        if residual: e.y[0].copy_(y0); e.dx.copy_(dx0)
        e.low(False); e.product(False, tile, e.y[0] if residual else None)
        e.low(True); e.product(True, tile, e.dx if residual else None)
        e.gradients(adds)
        torch.cuda.synchronize()
        values = {f"y{s}": e.y[s] for s in range(e.n)} | {"dx": e.dx}
        for s in e.adapted: values |= {f"p{s}": e.p[s], f"q{s}": e.q[s], f"da{s}": e.da[s], f"db{s}": e.db[s]}
        return {n: v.clone() for n, v in values.items()}

    got, again = run(), run()
    want, dx = {}, sum(d(e.dy[s]) @ d(e.w[s]) for s in range(e.n))
    for s in range(e.n):
        y = d(e.x) @ d(e.w[s]).T
        if s in e.adapted:
            p, q = d(e.p[s][:T]), d(e.q[s][:T])
            want[f"p{s}"], want[f"q{s}"] = e.scale * d(e.x) @ d(e.a[s]).T, e.scale * d(e.dy[s]) @ d(e.b[s])
            want[f"da{s}"], want[f"db{s}"] = 0.5 * adds + q.T @ d(e.x), 0.5 * adds + d(e.dy[s]).T @ p
            y, dx = y + p @ d(e.b[s]).T, dx + q @ d(e.a[s])
        want[f"y{s}"] = y + d(y0[:T]) if residual and s == 0 else y
    want["dx"] = dx + d(dx0[:T]) if residual else dx
    worst = bad = 0
    for n, v in got.items():
        rows = v if n[:2] in ("da", "db") else v[:T]
        err = error(rows, want[n])
        problems = [] if err < TOLERANCE else [f"error {err:.2e}"]
        if not torch.equal(v.view(torch.uint8), again[n].view(torch.uint8)): problems.append("not the same bytes")
        if rows is not v:
            last = (y0 if n == "y0" else dx0)[T] if residual and n in ("y0", "dx") else None
            fine = torch.equal(v[T], last) if last is not None else torch.isnan(v[T]).all()
            if not fine: problems.append("a row behind it written")
        if rows.numel() > 0:
            for fake in (torch.zeros_like(rows), -rows, torch.roll(rows, 1, 0)):
                if (rows.shape[0] > 1 or not torch.equal(fake, rows)) and error(fake, want[n]) < TOLERANCE: problems.append("a wrong value passes")
        if problems: bad += 1; print("   ", n, *problems, flush=True)
        worst = max(worst, err)
    print(f"{'ok ' if not bad else 'BAD'} T{T} I{I} O{widths} A{A} tile {tile} adapted {e.adapted} residual {residual}: {worst:.1e}", flush=True)


CHECKS = [
    (257, 256, [384, 128, 128], 16, NARROW), (257, 256, [384, 128, 128], 16, WIDE),
    (1, 64, [64], 16, NARROW), (7, 200, [136], 16, WIDE), (33, 72, [8, 264], 16, WIDE),
    (130, 2048, [4096, 512, 512], 16, NARROW, [0, 2]), (300, 320, [200, 72, 408], 16, NARROW, [1]),
    (300, 320, [200, 72, 408], 16, WIDE, [1]), (64, 128, [256], 16, NARROW, None, True),
    (257, 1032, [520], 16, WIDE, None, True), (4096, 2048, [4096, 512, 512], 16, NARROW), (4096, 4096, [2048], 16, WIDE, None, True),
    (4096, 2048, [4096, 512, 512], 16, WIDE), (1000, 640, [768, 256], 64, NARROW), (300, 136, [200, 72, 72], 64, NARROW),
    (300, 136, [200, 72, 72], 64, WIDE),
]


def compile_all(variants):
    def one(v):
        torch.zeros(1, device="cuda")
        Module(v[0], **v[1])
    with ThreadPoolExecutor(12) as pool: list(pool.map(one, variants))


def variants(ranks, tiles=(NARROW, WIDE), tokens=(1024, 4096)):
    for r in ranks:
        yield "projection_gradient", dict(RANK=r)
        for c, T in ((c, T) for c in (1, 2, 3) for T in tokens if c * r <= 64 or c == 1):
            rows, depth = low_shape(T, c * r)
            for t in (0, 1) if c == 1 else (0,):
                yield "projection_low", dict(TRANSPOSED=t, RANK=r, COUNT=c, ROWS=rows, DEPTH=depth)
        for columns, cluster in tiles:
            for m in (0, 1): yield "projection_sm90", dict(TRANSPOSED=m, TILE=columns, CLUSTER=cluster, RANK=r)


def bench(T, tiles=(NARROW, WIDE), copies=3):
    """Several copies take turns, so that weights come from memory, as in a step."""
    sets = [(Layers(T, 2048, [4096, 512, 512], 16, seed=i), Layers(T, 4096, [2048], 16, seed=i)) for i in range(copies)]

    def each(f):
        return lambda: [f(*s) for s in sets]

    dense_a, dense_b = rand(8192, 8192), rand(8192, 8192)
    mm = torch.mm
    works = {"dense": lambda: mm(dense_a, dense_b)}
    for t in tiles:
        works[f"qkv {t[0]}"] = each(lambda l, o, t=t: l.product(False, t))
        works[f"o {t[0]}"] = each(lambda l, o, t=t: o.product(False, t, o.y[0]))
        works[f"dqkv {t[0]}"] = each(lambda l, o, t=t: l.product(True, t))
        works[f"do {t[0]}"] = each(lambda l, o, t=t: o.product(True, t))
    out = lambda l: [v[:T] for v in l.y]
    works["cublas q"] = each(lambda l, o: mm(l.x, l.w[0].T, out=l.y[0][:T]))
    works["cublas k"] = each(lambda l, o: mm(l.x, l.w[1].T, out=l.y[1][:T]))
    works["cublas o"] = each(lambda l, o: mm(o.x, o.w[0].T, out=o.y[0][:T]))
    works["cublas o +="] = each(lambda l, o: o.y[0][:T].addmm_(o.x, o.w[0].T))
    works["cublas dq"] = each(lambda l, o: mm(l.dy[0], l.w[0], out=l.dx[:T]))
    works["cublas dk +="] = each(lambda l, o: l.dx[:T].addmm_(l.dy[1], l.w[1]))
    works["cublas do"] = each(lambda l, o: mm(o.dy[0], o.w[0], out=o.dx[:T]))
    works["cublas p"] = each(lambda l, o: mm(l.x, l.a[0].T, out=l.p[0][:T]))
    works["cublas y += p b"] = each(lambda l, o: l.y[0][:T].addmm_(l.p[0][:T], l.b[0].T))
    works["cublas q = dy b"] = each(lambda l, o: mm(l.dy[0], l.b[0], out=l.q[0][:T]))
    works["cublas db"] = each(lambda l, o: mm(l.dy[0].T, l.p[0][:T], out_dtype=torch.float32))
    works["cublas da"] = each(lambda l, o: mm(l.q[0][:T].T, l.x, out_dtype=torch.float32))
    works["p qkv"] = each(lambda l, o: l.low(False))
    works["p o"] = each(lambda l, o: o.low(False))
    works["q qkv"] = each(lambda l, o: l.low(True))
    works["q o"] = each(lambda l, o: o.low(True))
    works["grad qkv"] = each(lambda l, o: l.gradients())
    works["grad o"] = each(lambda l, o: o.gradients())
    for l, o in sets:
        l.low(False); o.low(False); l.low(True); o.low(True)
        for t in l.y + o.y + [l.dx, o.dx]: t.zero_()
    good = {}
    for n, w in works.items():
        try: w(); torch.cuda.synchronize(); good[n] = w
        except Exception as x: print("cannot", n, str(x)[:200], flush=True)
    t = times(good)
    gflop = {"qkv": 2 * T * 2048 * 5120, "o": 2 * T * 2048 * 4096, "q": 2 * T * 2048 * 4096, "k": 2 * T * 2048 * 512}
    print(f"T {T}, dense {2 * 8192 ** 3 / t.pop('dense') / 1e9:.0f} TFLOP/s")
    for n, ms in t.items():
        ms /= copies
        key = n.split()[1] if n.startswith("cublas") else n.split()[0]
        key = key[1:] if key[0] == "d" and key not in ("db", "da") else key
        has = key in gflop and not n.startswith(("p ", "q ", "grad", "cublas p", "cublas q =", "cublas y"))
        print(f"  {n:16} {1000 * ms:7.1f} us" + (f" {gflop[key] / ms / 1e9:5.0f} TFLOP/s" if has else ""), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "check":
        compile_all(variants((16, 64)))
        for c in CHECKS:
            try: check(*c)
            except Exception: print("BAD", c); traceback.print_exc(limit=3)
    else:
        compile_all(variants((16,)))
        for tokens in sys.argv[2:]:
            try: bench(int(tokens))
            except Exception: traceback.print_exc(limit=3)
            torch.cuda.empty_cache()
