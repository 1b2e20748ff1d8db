"""GB/s of the plain ops: bf16, inputs that no cache holds (each launch of a graph takes the next of many sets of tensors), beside
a copy by torch in the same way. `bench_ops.py [T ...]`."""
import sys
import torch
import ops

bf16 = torch.bfloat16


def microseconds(launch, sets):
    """Of one launch: the median of seven replays of a graph that launches once for each set."""
    for s in sets: launch(*s)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for s in sets: launch(*s)
    times = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(); graph.replay(); end.record(); torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(sets))
    return sorted(times)[3]


def sets_of(*shapes, dtype=bf16):
    """Enough sets of tensors of these shapes to leave a 60 MB cache cold."""
    size = sum(torch.Size(s).numel() for s in shapes) * torch.empty((), dtype=dtype).element_size()
    return [[torch.randn(s, device="cuda").to(dtype) for s in shapes] for _ in range(max(3, 600_000_000 // size))]


def report(name, bytes_, time):
    print(f"{name:34} {time:8.1f} us {bytes_ / time / 1e3:7.0f} GB/s", flush=True)


def bench(T, H=2048, Q=32, G=4, D=128, F=6144):
    row = 2.0 * T * H
    print(f"T {T}")
    report("torch copy", 2 * row, microseconds(lambda x, y: y.copy_(x), sets_of((T, H), (T, H))))
    report("add", 3 * row, microseconds(ops.add, sets_of((T, H), (T, H))))
    report("convert from bf16", 3 * row, microseconds(lambda x, y: ops.convert(x, y.view(torch.float32)), sets_of((T, H), (T, 2 * H))))
    report("convert to bf16", 3 * row, microseconds(lambda x, y: ops.convert(x.view(torch.float32), y), sets_of((T, 2 * H), (T, H))))
    w = torch.randn(H, device="cuda").to(bf16)
    report("rms_norm", 2 * row, microseconds(lambda x, y: ops.rms_norm(x, w, 1e-6, y), sets_of((T, H), (T, H))))
    three = sets_of((T, H), (T, H), (T, H))
    report("rms_norm_backward", 4 * row, microseconds(lambda x, dy, dx: ops.rms_norm_backward(x, w, 1e-6, dy, dx), three))
    scale, partial, dw = (torch.zeros(s, device="cuda") for s in ((T,), (ops.up(T, ops.norm_chunk(T)), H), (H,)))
    report("rms_norm_weight", 2 * row, microseconds(lambda x, dy, _: ops.rms_norm_weight(x, w, dy, scale, partial, dw), three))
    angle = torch.rand(T, D // 2, device="cuda")
    tables = (angle.cos(), angle.sin(), torch.arange(T, device="cuda", dtype=torch.int32))
    wd, dwd = torch.randn(D, device="cuda").to(bf16), torch.zeros(D, device="cuda")
    for N in (Q, G):
        head, two, three = 2.0 * T * N * D, sets_of((T, N, D), (T, N, D)), sets_of((T, N, D), (T, N, D), (T, N, D))
        partial = torch.zeros(ops.rotate_sums(T, N, D), D, device="cuda")
        report(f"rotate N {N}", 2 * head, microseconds(lambda x, y: ops.rotate(x, wd, 1e-6, *tables, y), two))
        report(f"rotate N {N}, no norm", 2 * head, microseconds(lambda x, y: ops.rotate(x, None, 1e-6, *tables, y), two))
        report(f"rotate_backward N {N}", 3 * head,
               microseconds(lambda x, dy, dx: ops.rotate_backward(x, wd, 1e-6, *tables, dy, dx), three))
        def trained(x, dy, dx):
            ops.rotate_backward(x, wd, 1e-6, *tables, dy, dx, partial)
            ops.add_rows(partial, dwd)
        report(f"rotate_backward N {N}, trained", 3 * head, microseconds(trained, three))
    inner = 2.0 * T * F
    report("swiglu", 3 * inner, microseconds(ops.swiglu, sets_of((T, F), (T, F), (T, F))))
    report("swiglu_backward in place", 5 * inner,
           microseconds(lambda g, u, d: ops.swiglu_backward(g, u, d, g, u), sets_of((T, F), (T, F), (T, F))))
    two = sets_of((T, H), (T, H))
    report("dropout", 2 * row, microseconds(lambda x, y: ops.dropout(x, y, 0, 1, 1677722, 1.1, 0), two))
    report("dropout adding", 3 * row, microseconds(lambda x, y: ops.dropout(x, y, 0, 1, 1677722, 1.1, 1), two))
    report("fill_normal", row, microseconds(lambda x, y: ops.fill_normal(x, 1, 1.0), two))
    flag = torch.zeros(1, device="cuda", dtype=torch.int32)
    report("find_nonfinite", row, microseconds(lambda x, y: ops.find_nonfinite(x, flag), two))
    V = 151936
    tokens = torch.randint(0, V, (T,), device="cuda", dtype=torch.int32)
    table, dtable = torch.randn(V, H, device="cuda").to(bf16), torch.zeros(V, H, device="cuda")
    report("embedding", 2 * row, microseconds(lambda x, y: ops.embedding(tokens, table, y), two))
    report("embedding_backward", 5 * row, microseconds(lambda x, y: ops.embedding_backward(tokens, x, dtable), two))
    tokens[::8] = 5
    report("embedding_backward, 1/8 one token", 5 * row,
           microseconds(lambda x, y: ops.embedding_backward(tokens, x, dtable), two))


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["4096"]:
        bench(int(argument))
        torch.cuda.empty_cache()
