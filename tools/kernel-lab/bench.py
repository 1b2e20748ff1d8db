"""Times of the expert kernels beside torch._grouped_mm and a dense cuBLAS product, interleaved in one run; medians of graph
replays. TFLOP/s count the base products only (4 or 2 R F H), for all systems; ours include gather, adapter and SwiGLU."""
import sys
import torch
from lab import Experts, UP, DOWN, DACT, DX

rounds, inner = 7, 3


def graph(work):
    work(); work()
    torch.cuda.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for _ in range(inner): work()
    return g


def times(works):
    """Name -> median milliseconds; the rivals take turns."""
    graphs = {n: graph(w) for n, w in works.items()}
    samples = {n: [] for n in works}
    for _ in range(rounds):
        for n, g in graphs.items():
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record(); g.replay(); b.record(); torch.cuda.synchronize()
            samples[n].append(a.elapsed_time(b) / inner)
    return {n: sorted(s)[rounds // 2] for n, s in samples.items()}


def routing(kind, E, T, K):
    if kind == "even":
        return (torch.arange(T * K) % E)[torch.randperm(T * K)]
    if kind == "drawn":
        return torch.rand(T, E).topk(K).indices.flatten()
    # Skewed: expert popularity falls geometrically so that the largest has about 8 times the mean.
    p = torch.exp(-torch.arange(E) / (E / 8.0)) + 0.02
    return torch.multinomial(p / p.sum(), T * K, replacement=True)


def bench(name, ids, H, F, E, K, A):
    e = Experts(ids, H, F, E, K, A)
    e.route(); e.up(); e.down(); e.dact(); e.dx(); e.gradients(); torch.cuda.synchronize()
    token, offsets = e.order.long() // K, e.offset[1:].contiguous()
    xs, dys, gu, act = e.x[token], e.dy[token], e.gate_up[:e.R], e.act[:e.R]
    wgu_t, wd_t = e.wgu.transpose(1, 2), e.wd.transpose(1, 2)
    y = e.y0.clone()
    mm = torch._grouped_mm
    t = times({
        "up": e.up, "up gemm": lambda: e.gemm(UP), "torch up": lambda: mm(xs, wgu_t, offs=offsets),
        "down": e.down, "down gemm": lambda: e.gemm(DOWN), "torch down": lambda: mm(act, wd_t, offs=offsets),
        "dact": e.dact, "dact gemm": lambda: e.gemm(DACT), "torch dact": lambda: mm(dys, e.wd, offs=offsets),
        "dx": e.dx, "dx gemm": lambda: e.gemm(DX), "torch dx": lambda: mm(e.dgate_up[:e.R], e.wgu, offs=offsets),
        "combine": lambda: e.combine(y), "combine_b": lambda: e.combine_backward(y), "gradients": e.gradients,
        "route": e.route, "dense": lambda: torch.mm(dense_a, dense_b),
    })
    flops = {"up": 4.0, "dx": 4.0, "down": 2.0, "dact": 2.0}
    largest = int((e.offset[1:] - e.offset[:-1]).max())
    rate = lambda n: flops[n.split()[-1] if n.startswith("torch") else n.split()[0]] * e.R * F * H / t[n] / 1e9
    print(f"{name:26} (largest {largest:5})", end="")
    for op in ("up", "down", "dact", "dx"):
        print(f" | {op} {rate(op):4.0f} (gemm {rate(op + ' gemm'):4.0f}) torch {rate('torch ' + op):4.0f}", end="")
    print(f" | dense {2 * 8192 ** 3 / t['dense'] / 1e9:.0f}")
    gb = lambda bytes, n: bytes / t[n] / 1e6
    row = 2.0 * e.R * H
    print("      us: " + ", ".join(f"{n} {1000 * v:.0f}" for n, v in t.items()) +
          f"; combine {gb(row + 2 * row / K, 'combine'):.0f} GB/s, gradients {gb(2 * row + 3 * 2.0 * e.R * F, 'gradients'):.0f} GB/s", flush=True)


if __name__ == "__main__":
    dense_a, dense_b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.manual_seed(0)
    for argument in sys.argv[1:] or ["512"]:
        if argument.startswith("oss"):
            rows = int(argument[3:])
            bench(f"gpt-oss {rows}", routing("even", 32, rows * 8, 4), 2880, 2880, 32, 4, 16)
        else:
            kind = {"skew": "skewed", "drawn": "drawn", "": "even"}[argument.rstrip("0123456789")]
            rows = int(argument.lstrip("skewdran"))
            bench(f"Qwen3-30B-A3B {rows} {kind}", routing(kind, 128, rows * 16, 8), 2048, 768, 128, 8, 16)
        torch.cuda.empty_cache()
