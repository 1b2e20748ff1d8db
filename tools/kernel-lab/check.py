"""Every expert kernel against a float64 reference: odd sizes, empty experts, everything to one expert; the same bytes twice,
and dgateUp over gateUp. Zeros, a wrong sign and shifted rows have to fail for every output."""
import sys
import torch
from lab import Experts, DACT

TOLERANCE = 8e-3


def error(value, reference):
    value = value.double()
    return ((value - reference).norm() / reference.norm()).item() if torch.isfinite(value).all() else float("nan")


def reference(e):
    """Name -> float64 tensor. Each kernel is judged on the inputs that it really had, so that errors do not add up."""
    d = lambda t: t.double()
    ids, order = e.ids.long(), e.order.long()
    assert torch.equal(order, torch.sort(ids, stable=True)[1])
    assert torch.equal(e.position.long()[order], torch.arange(e.R, device="cuda"))
    counts = torch.bincount(ids, minlength=e.E)
    assert torch.equal(e.offset.long(), torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
    token = order // e.K
    x, dy, w = d(e.x)[token], d(e.dy)[token], d(e.weight)[order]
    gate, up = d(e.gate_up[:e.R]).split(e.F, 1)
    sig = torch.sigmoid(gate)
    act = gate * sig * up
    names = "p1 gate_up p2 out q2 dact q1 dx da1 db1 da2 db2".split()
    r = {n: [] for n in names}
    for i in range(e.E):
        s = slice(int(e.offset[i]), int(e.offset[i + 1]))
        wgu, wd = d(e.wgu[i]), d(e.wd[i])
        g, o, da = x[s] @ wgu.T, d(e.act[s]) @ wd.T, dy[s] @ wd
        dx = d(e.dgate_up[s]) @ wgu
        if e.A:
            g, o = g + d(e.p1[s]) @ d(e.b1[i]).T, o + d(e.p2[s]) @ d(e.b2[i]).T
            da, dx = da + d(e.q2[s]) @ d(e.a2[i]), dx + d(e.q1[s]) @ d(e.a1[i])
            r["p1"].append(e.scale * x[s] @ d(e.a1[i]).T); r["p2"].append(e.scale * d(e.act[s]) @ d(e.a2[i]).T)
            r["q2"].append(e.scale * dy[s] @ d(e.b2[i])); r["q1"].append(e.scale * d(e.dgate_up[s]) @ d(e.b1[i]))
            r["da1"].append(d(e.q1[s]).T @ x[s]); r["db1"].append(d(e.dgate_up[s]).T @ d(e.p1[s]))
            r["da2"].append(d(e.q2w[s]).T @ d(e.act2[s])); r["db2"].append(dy[s].T @ d(e.p2w[s]))
        r["gate_up"].append(g); r["out"].append(o); r["dact"].append(da); r["dx"].append(dx)
    for n in list(r):
        if n[:2] in ("da", "db") and n != "dact": r[n] = torch.stack(r[n]) if r[n] else None
        else: r[n] = torch.cat(r[n]) if r[n] else None
    dact = r.pop("dact")
    r["act"] = r["act2"] = act
    r["dgate_up"] = torch.cat([w[:, None] * dact * up * sig * (1 + gate * (1 - sig)), w[:, None] * dact * gate * sig], 1)
    r["dweight"] = torch.empty_like(w).scatter_(0, order, (act * dact).sum(1))
    if e.A:
        r["p2w"], r["q2w"] = w[:, None] * r["p2"], w[:, None] * r["q2"]
    y, dxs = d(e.y0).clone(), torch.zeros_like(d(e.y0))
    for k in range(e.K):
        at = e.position.long().view(e.T, e.K)[:, k]
        y += d(e.weight).view(e.T, e.K)[:, k, None] * d(e.out)[at]
        dxs += d(e.dxr)[at]
    r["y"], r["dx_TH"] = y, dxs
    return r


def run(e):
    e.route(); e.up(); e.down()
    e.y = e.y0.clone(); e.combine(e.y)
    e.dact(); e.dx()
    e.dx_TH = torch.full_like(e.y0, float("nan")); e.combine_backward(e.dx_TH)
    if e.A:
        sums = (e.da1, e.db1, e.da2, e.db2)
        for g in sums: g.fill_(float("nan"))
        e.gradients()
        first = [g.clone() for g in sums]
        e.gradients(adds=1)
        for g, once in zip(sums, first):
            assert torch.equal(g, 2 * once), "added"
            g.copy_(once)
    torch.cuda.synchronize()


def case(name, counts, H, F, K, A, seed):
    E = len(counts)
    ids = torch.repeat_interleave(torch.arange(E), torch.tensor(counts))
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))]
    e = Experts(ids, H, F, E, K, A, seed=seed)
    run(e)
    e.dxr_ = e.dxr
    values = lambda: {"gate_up": e.gate_up[:e.R], "act": e.act[:e.R], "act2": e.act2[:e.R], "out": e.out[:e.R],
                      "dgate_up": e.dgate_up[:e.R], "dx": e.dxr[:e.R], "dweight": e.dweight, "y": e.y, "dx_TH": e.dx_TH,
                      **({n: getattr(e, n) for n in "p1 p2 q1 q2 p2w q2w da1 db1 da2 db2".split()} if e.A else {})}
    first = {n: v.clone() for n, v in values().items()}
    right = {n: v for n, v in reference(e).items() if v is not None}
    errors = {n: error(first[n], v) for n, v in right.items()}
    assert set(errors) == set(first), set(errors) ^ set(first)
    sentinels = all(t[e.R:].isnan().all() for t in (e.gate_up, e.act, e.out, e.dgate_up, e.act2, e.dxr))
    rejects = all(error(wrong, v) > TOLERANCE for v in right.values() for wrong in (torch.zeros_like(v), -v, v.roll(1, 0)))
    same = True
    for _ in range(3):
        run(e)
        same &= all(torch.equal(v.view(torch.int16 if v.dtype == torch.bfloat16 else torch.int32),
                                first[n].view(torch.int16 if v.dtype == torch.bfloat16 else torch.int32))
                    for n, v in values().items())
    e.gemm(DACT, in_place=True)
    same &= torch.equal(e.gate_up[:e.R], first["dgate_up"]) and torch.equal(e.act2[:e.R], first["act2"])
    sentinels &= bool(e.gate_up[e.R:].isnan().all())
    good = all(x < TOLERANCE for x in errors.values()) and sentinels and same and rejects and torch.equal(first["act"], first["act2"])
    worst = max(errors, key=lambda n: errors[n] if errors[n] == errors[n] else 9)
    print(f"{'ok  ' if good else 'FAIL'} {name:34} worst {worst} {errors[worst]:.1e} sentinels {sentinels} same bytes {same} "
          f"rejects {rejects}", flush=True)
    if not good: print("     ", {n: f"{x:.1e}" for n, x in errors.items()})
    return good


small = "--small" in sys.argv
cases = [
    ("counts 1 7 33 257 0", [1, 7, 33, 257, 0], 256, 128, 2, 16),
    ("widths 200 and 136", [0, 64, 65, 128, 129, 0], 200, 136, 2, 16),
    ("everything to one expert", [0, 0, 500, 0], 320, 192, 4, 32),
    ("no adapter", [3, 61, 0, 200], 256, 320, 2, 0),
    ("rank 64, top 1", [100, 29], 512, 256, 1, 64),
]
if not small:
    cases += [
        ("gpt-oss widths", [0, 7, 300, 513], 2880, 2880, 4, 16),
        ("Qwen3-30B-A3B, 64 rows", [64] * 128, 2048, 768, 8, 16),
        ("Qwen3-30B-A3B, skewed", [(i * i) % 97 * 8 for i in range(128)], 2048, 768, 8, 16),
    ]
results = [case(*c, seed=i) for i, c in enumerate(cases)]
sys.exit(0 if all(results) else 1)
