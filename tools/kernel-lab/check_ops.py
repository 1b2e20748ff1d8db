"""Every plain op against a float64 reference: both storages, odd sizes and addresses; nothing written beyond; the same bytes
twice; and a result left as it was (zero, or not added to) must fail. `--reference` checks the references alone, without a GPU."""
import sys
import traceback
import torch

bf16, f32, f64 = torch.bfloat16, torch.float32, torch.float64
device = "cpu" if "--reference" in sys.argv else "cuda"
if device == "cuda": import ops
TOLERANCE = {bf16: 4e-3, f32: 3e-6}
GUARD = 4096
failures = []
generator = torch.Generator(device).manual_seed(1)


def rand(*shape, dtype=bf16, std=1.0, offset=0):
    """Normal numbers, `offset` elements after an aligned address."""
    flat = torch.randn(offset + int(torch.tensor(shape).prod()), device=device, generator=generator) * std
    return flat.to(dtype)[offset:].view(*shape)


def bits(t): return t.contiguous().view({2: torch.int16, 4: torch.int32}[t.element_size()])


def guarded(start, dtype):
    """A copy of `start` (a shape: NaN) with poison before and behind it, so that no neighbour of a result may change."""
    shape = start if isinstance(start, tuple) else start.shape
    count = int(torch.tensor(shape).prod())
    whole = torch.full((count + 2 * GUARD,), float("nan"), device=device, dtype=dtype)
    inner = whole[GUARD:GUARD + count].view(shape)
    if not isinstance(start, tuple): inner.copy_(start)
    return inner, whole


def error(value, reference):
    value = value.double()
    if not torch.isfinite(value).all(): return float("nan")
    return ((value - reference).norm() / (reference.norm() if reference.any() else 1)).item()


def check(name, dtypes, starts, references, run, exact=False):
    """`run(*outputs)` writes outputs that began as `starts` (tensors, or shapes for NaN); judged by `references`."""
    if device == "cpu": return
    try:
        results = []
        for _ in range(2):
            made = [guarded(s, d) for s, d in zip(starts, dtypes)]
            run(*[inner for inner, _ in made])
            torch.cuda.synchronize()
            results.append([inner.clone() for inner, _ in made])
            intact = all(w[:GUARD].isnan().all() and w[-GUARD:].isnan().all() for _, w in made)
        errors = [error(v, r) for v, r in zip(results[0], references)]
        same = all(torch.equal(bits(a), bits(b)) for a, b in zip(*results))
        limits = [0.0 if exact else TOLERANCE[d] for d in dtypes]
        untouched = [torch.zeros_like(r) if isinstance(s, tuple) else s for s, r in zip(starts, references)]
        strict = all(not error(u, r) <= 10 * limit for u, r, limit in zip(untouched, references, limits) if r.abs().sum() > 0)
        good = intact and same and strict and all(e <= limit for e, limit in zip(errors, limits))
        print("ok  " if good else "FAIL", f"{name:58}", " ".join(f"{e:.1e}" for e in errors),
              "" if good else f"intact {intact} same {same} strict {strict}", flush=True)
        if not good: failures.append(name)
    except Exception as problem:
        failures.append(name)
        print("FAIL", name, problem, flush=True)
        traceback.print_exc(limit=2)
        if "CUDA" in str(problem) and "launch" in str(problem).lower(): sys.exit(1)


def name_of(dtype): return "bf16" if dtype == bf16 else "f32"


# --- references -------------------------------------------------------------------------------------------------------

def gradients(f, inputs, dy):
    inputs = [x.double().detach().requires_grad_() for x in inputs]
    y = f(*inputs)
    return [y.detach()] + list(torch.autograd.grad(y, inputs, dy.double()))


def norm(x, w, epsilon): return w * (x * (x * x).mean(-1, keepdim=True).add(epsilon).rsqrt())


def turn(z, cosine, sine, positions):
    c, s = cosine.double()[positions.long()][:, None], sine.double()[positions.long()][:, None]
    a, b = z.chunk(2, -1)
    return torch.cat([a * c - b * s, b * c + a * s], -1)


def philox(seed, counters):
    """The four words of int64 counters, [n, 4], in int64."""
    m = 0xFFFFFFFF
    def mul(a, b):  # high and low 32 bits, by halves, since int64 is signed
        low, mid = (a & 0xFFFF) * b, (a >> 16) * b
        return (mid + (low >> 16)) >> 16, (low + ((mid & 0xFFFF) << 16)) & m
    c = [counters & m, (counters >> 32) & m, torch.zeros_like(counters), torch.zeros_like(counters)]
    k0, k1 = seed & m, seed >> 32 & m
    for _ in range(10):
        (h0, l0), (h1, l1) = mul(c[0], 0xD2511F53), mul(c[2], 0xCD9E8D57)
        c = [h1 ^ c[1] ^ k0, l1, h0 ^ c[3] ^ k1, l0]
        k0, k1 = (k0 + 0x9E3779B9) & m, (k1 + 0xBB67AE85) & m
    return torch.stack(c, -1)


def words_at(seed, first, count):
    index = torch.arange(first, first + count, device=device)
    return philox(seed, index // 4).gather(-1, (index % 4)[:, None])[:, 0]


def normals_at(seed, first, count):
    index = torch.arange(first, first + count, device=device)
    words, pair = philox(seed, index // 4).double(), index % 4 // 2 * 2
    u, angle = words.gather(-1, pair[:, None])[:, 0], words.gather(-1, pair[:, None] + 1)[:, 0]
    radius, angle = (-2 * ((u + 0.5) * 2.0 ** -32).log()).sqrt(), angle * (2 * torch.pi * 2.0 ** -32)
    return torch.where(index % 2 == 0, radius * angle.cos(), radius * angle.sin())


# Known answers: Random123's kat_vectors, and a seed and counter of two words each as MartletCore's Philox defines them.
assert [hex(w) for w in philox(0, torch.tensor([0]))[0].tolist()] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


# --- cases ------------------------------------------------------------------------------------------------------------

def elementwise(dtype, count, offset=0):
    tag, make = f"{name_of(dtype)} N{count} +{offset}", lambda: rand(count, dtype=dtype, offset=offset)
    x, y, gate, up_, dy = make(), make(), make() * 3, make(), make()
    check(f"add {tag}", [dtype], [y], [y.double() + x.double()], lambda o: ops.add(x, o))
    f = lambda g, u: torch.nn.functional.silu(g) * u
    s, dg, du = gradients(f, [gate, up_], dy)
    check(f"swiglu {tag}", [dtype], [(count,)], [s], lambda o: ops.swiglu(gate, up_, o))
    check(f"swiglu_backward {tag}", [dtype] * 2, [(count,)] * 2, [dg, du],
          lambda a, b: ops.swiglu_backward(gate, up_, dy, a, b))
    check(f"swiglu_backward in place {tag}", [dtype] * 2, [gate, up_], [dg, du],
          lambda a, b: ops.swiglu_backward(a, b, dy, a, b))
    other = f32 if dtype == bf16 else bf16
    check(f"convert from {tag}", [other], [(count,)], [x.to(other).double()], lambda o: ops.convert(x, o), exact=True)
    if device == "cuda":
        for at, bad in [(None, 0), (0, float("inf")), (count - 1, float("nan")), (count // 2, float("-inf"))]:
            z, flag = x.clone(), torch.zeros(1, device=device, dtype=torch.int32)
            if at is not None: z[at] = bad
            ops.find_nonfinite(z, flag)
            if flag.item() != int(at is not None): failures.append(f"find_nonfinite {tag}"); print("FAIL find_nonfinite", tag, at)


def dropouts(dtype, rows, width, first_row, p, seed=0x123456789ABCDEF0):
    x, y = rand(rows, width, dtype=dtype), rand(rows, width, dtype=dtype)
    scale = (1 / (1 - torch.tensor(p))).item() if p < 1 else float("inf")
    threshold = -int(-float(torch.tensor(p)) * 2 ** 24 // 1)
    kept = ((words_at(seed, first_row * width, rows * width) >> 8) >= threshold).view(rows, width)
    want = torch.where(kept, x.float() * scale, 0.0)
    if rows * width > 1000 and p < 1: assert abs(kept.float().mean().item() - (1 - p)) < 0.05
    tag = f"{name_of(dtype)} {rows} x {width} from {first_row} p {p}"
    arguments = (first_row * width, seed, threshold, scale)
    check(f"dropout {tag}", [dtype], [(rows, width)], [want.to(dtype).double()], lambda o: ops.dropout(x, o, *arguments, 0), exact=True)
    if want.any(): check(f"dropout adding {tag}", [dtype], [y], [y.double() + want.double()], lambda o: ops.dropout(x, o, *arguments, 1))


def normal(dtype, count, seed=7):
    want = 0.02 * normals_at(seed, 0, count)
    if count > 10000: assert abs(want.mean()) < 1e-3 and abs(want.std() - 0.02) < 1e-3 and abs((want / 0.02).pow(4).mean() - 3) < 0.2
    check(f"fill_normal {name_of(dtype)} N{count}", [dtype], [(count,)], [want], lambda o: ops.fill_normal(o, seed, 0.02))


def norms(dtype, weight_dtype, T, H, epsilon=1e-3):
    x, w, dy, dx0 = rand(T, H, dtype=dtype), rand(H, dtype=weight_dtype), rand(T, H, dtype=dtype), rand(T, H, dtype=dtype)
    y, dx, dw = gradients(lambda x, w: norm(x, w, epsilon), [x, w], dy)
    dw0 = rand(H, dtype=f32)
    tag = f"{name_of(dtype)} weight {name_of(weight_dtype)} T{T} H{H}"
    check(f"rms_norm {tag}", [dtype], [(T, H)], [y], lambda o: ops.rms_norm(x, w, epsilon, o))
    check(f"rms_norm_backward {tag}", [dtype], [dx0], [dx0.double() + dx], lambda o: ops.rms_norm_backward(x, w, epsilon, dy, o))
    def trained(dx_, dw_):
        scale, partial = (torch.full(s, float("nan"), device=device) for s in ((T,), (ops.up(T, ops.norm_chunk(T)), H)))
        ops.rms_norm_backward(x, w, epsilon, dy, dx_, scale)
        ops.rms_norm_weight(x, w, dy, scale, partial, dw_)
    check(f"rms_norm_backward trained {tag}", [dtype, f32], [dx0, dw0], [dx0.double() + dx, dw0.double() + dw], trained)


def rotations(dtype, weight_dtype, T, N, D, epsilon=1e-3):
    x, dy = rand(T, N, D, dtype=dtype), rand(T, N, D, dtype=dtype)
    angle = (torch.arange(T + 3, device=device).double()[:, None] * 100.0 ** -(torch.arange(D // 2, device=device) / (D / 2)))
    cosine, sine = angle.cos().float(), angle.sin().float()
    positions = (torch.arange(T, device=device) * 5 % (T + 3)).int()
    tag = f"{name_of(dtype)} T{T} N{N} D{D}"
    y, dx = gradients(lambda x: turn(x, cosine, sine, positions), [x], dy)
    tables = (cosine, sine, positions)
    check(f"rotate {tag}", [dtype], [(T, N, D)], [y], lambda o: ops.rotate(x, None, 0.0, *tables, o))
    check(f"rotate_backward {tag}", [dtype], [(T, N, D)], [dx], lambda o: ops.rotate_backward(x, None, 0.0, *tables, dy, o))
    w, dw0 = rand(D, dtype=weight_dtype), rand(D, dtype=f32)
    y, dx, dw = gradients(lambda x, w: turn(norm(x, w, epsilon), cosine, sine, positions), [x, w], dy)
    tag += f" norm {name_of(weight_dtype)}"
    check(f"rotate {tag}", [dtype], [(T, N, D)], [y], lambda o: ops.rotate(x, w, epsilon, *tables, o))
    check(f"rotate in place {tag}", [dtype], [x], [y], lambda o: ops.rotate(o, w, epsilon, *tables, o))
    check(f"rotate_backward {tag}", [dtype], [(T, N, D)], [dx], lambda o: ops.rotate_backward(x, w, epsilon, *tables, dy, o))
    check(f"rotate_backward in place {tag}", [dtype], [dy], [dx], lambda o: ops.rotate_backward(x, w, epsilon, *tables, o, o))
    def trained(dx_, dw_):
        partial = torch.full((ops.rotate_sums(T, N, D), D), float("nan"), device=device)
        ops.rotate_backward(x, w, epsilon, *tables, dy, dx_, partial)
        ops.add_rows(partial, dw_)
    check(f"rotate_backward trained {tag}", [dtype, f32], [(T, N, D), dw0], [dx, dw0.double() + dw], trained)


def embeddings(dtype, table_dtype, T, V, H):
    tokens = (torch.randint(0, V, (T,), device=device, generator=generator) ** 2 // V).int()
    table, dx, start = rand(V, H, dtype=table_dtype), rand(T, H, dtype=dtype), rand(V, H, dtype=f32)
    tag = f"{name_of(dtype)} table {name_of(table_dtype)} T{T} V{V} H{H}"
    want = table[tokens.long()].to(dtype).double()
    check(f"embedding {tag}", [dtype], [(T, H)], [want], lambda o: ops.embedding(tokens, table, o), exact=True)
    sums = start.double().index_add(0, tokens.long(), dx.double())
    check(f"embedding_backward {tag}", [f32], [start], [sums], lambda o: ops.embedding_backward(tokens, dx, o))


for dtype in (bf16, f32):
    for count, offset in [(1, 0), (7, 0), (2048, 0), (2057, 0), (100_003, 0), (4096, 1), (1001, 3)]: elementwise(dtype, count, offset)
    for rows, width, first_row, p in [(1, 1, 0, .5), (7, 33, 5, .1), (33, 200, 3, .25), (257, 64, 3_000_000_000, .5), (5, 7, 3_000_000_001, .3), (9, 16, 2, 1.0)]:
        dropouts(dtype, rows, width, first_row, p)
    # No single one: near 0 a normal number is exact to 2^-24 of the deviation, not of itself.
    for count in (7, 1001, 100_003): normal(dtype, count)
    for T, H in [(1, 8), (7, 33), (33, 200), (257, 2048), (9, 2880), (65, 4099), (5, 7168), (3, 16384), (2, 16391), (4097, 64)]: norms(dtype, dtype, T, H)
    for T, N, D in [(1, 1, 2), (7, 3, 6), (33, 5, 64), (257, 32, 128), (9, 4, 96), (5, 2, 80), (3, 1, 256), (65, 7, 192), (2, 9, 512), (3, 2, 510)]:
        rotations(dtype, dtype, T, N, D)
    for T, V, H in [(1, 3, 8), (7, 2, 33), (257, 40, 2048), (600, 5, 200), (33, 11, 4100), (2000, 700, 64)]: embeddings(dtype, dtype, T, V, H)
norms(bf16, f32, 33, 2048)
rotations(bf16, f32, 33, 4, 128)
embeddings(bf16, f32, 33, 11, 200)
if device == "cuda":
    count = 2 ** 31 + 5
    x = torch.full((count,), float("nan"), device=device, dtype=bf16)
    ops.fill_normal(x, 3, 1.0)
    tail = error(x[-1000:], normals_at(3, count - 1000, 1000))
    y = x.clone()
    ops.add(x, y)
    good = tail < TOLERANCE[bf16] and torch.equal(y[-3000:], x[-3000:] * 2) and bool(torch.isfinite(x).all())
    print("ok  " if good else "FAIL", f"2^31 + 5 elements: fill_normal {tail:.1e}", flush=True)
    if not good: failures.append("2^31 + 5")
print(f"{len(failures)} failures", failures)
sys.exit(1 if failures else 0)
