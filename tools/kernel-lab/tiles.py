"""Every tile of every kernel that has a choice, against the usual one: the same bytes, and microseconds. `BACKEND=portable python3
tiles.py 64 256 512`: rows an expert of Qwen3-30B-A3B. The lists are those of Sources/MartletCUDA/Ops/TileCandidates.swift."""
import sys
import torch
from lab import Experts, UP, DOWN, DACT, DX
from attention import Attention

# Columns, step of K, stages: for 227, 163 and 99 KB of shared memory a block.
PORTABLE = {9: [(128, 64, 3), (128, 32, 5), (256, 64, 4)], 80: [(128, 32, 4), (128, 32, 5), (128, 64, 3), (256, 32, 6), (256, 64, 3)],
            8: [(128, 32, 3), (128, 64, 3), (256, 32, 3), (256, 32, 4)]}
major, minor = torch.cuda.get_device_capability()
PORTABLE = PORTABLE[9 if major in (9, 10) else 80 if (major, minor) == (8, 0) else 8]
BLOCKS, DEPTHS = [2, 4, 3], [2, 3, 4]
FLASH = [dict(WARPS=w, WARP_ROWS=r, RING=2, BLOCKS=b) for w, r, b in ((4, 32, 2), (4, 16, 2), (8, 16, 1), (8, 32, 1), (4, 32, 1))]
rounds = 7


def bits(tensors):
    return [t.clone().view(torch.int16 if t.dtype == torch.bfloat16 else torch.int32) for t in tensors]


def examine(name, tiles, outputs, launch):
    """`launch(tile)` fills `outputs`, which are poisoned before each."""
    usual, wrong, samples = None, [], {t: [] for t in tiles}
    for tile in tiles:
        for o in outputs: o.fill_(float("nan") if o.dtype == torch.bfloat16 else 0)
        launch(tile)
        torch.cuda.synchronize()
        found = bits(outputs)
        usual = usual or found
        if not all(map(torch.equal, usual, found)): wrong.append(tile)
    for _ in range(rounds):
        for tile in tiles:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(); launch(tile); launch(tile); end.record(); torch.cuda.synchronize()
            samples[tile].append(start.elapsed_time(end) * 500)
    times = ", ".join(f"{t} {sorted(s)[rounds // 2]:.1f}" for t, s in samples.items())
    print(f"{'FAIL' if wrong else 'ok  '} {name}: {times}" + (f"; other bytes: {wrong}" if wrong else ""), flush=True)
    return not wrong


def experts(rows):
    e = Experts(torch.rand(rows * 16, 128).topk(8).indices.flatten(), 2048, 768, 128, 8, 16)
    e.route(); e.up(); e.down(); e.dact(); e.dx(); e.gradients()
    good = True
    outputs = {UP: [e.gate_up, e.act], DOWN: [e.out], DACT: [e.dgate_up, e.act2, e.partial], DX: [e.dxr]}
    for mode, name in enumerate(("up", "down", "dact", "dx")):
        def launch(tile): e.tile = tile; e.gemm(mode)
        good &= examine(f"{rows} {name}", PORTABLE, outputs[mode], launch)
        e.tile = PORTABLE[0]; e.gemm(mode)
    for name, p, weighted, *rest in (("p1", e.p1, None, e.x, e.a1, True), ("p2", e.p2, e.p2w, e.act, e.a2, False),
                                     ("q2", e.q2, e.q2w, e.dy, e.b2t, True), ("q1", e.q1, None, e.dgate_up, e.b1t, False)):
        def launch(blocks): e.blocks = blocks; e.project(rest[0], rest[1], p, weighted, rest[2])
        good &= examine(f"{rows} {name}", BLOCKS, [p] + ([] if weighted is None else [weighted]), launch)
    for name, *rest in (("da1", e.q1, e.x, e.da1, True, False), ("db1", e.p1, e.dgate_up, e.db1, False, True),
                        ("da2", e.q2w, e.act2, e.da2, False, False), ("db2", e.p2w, e.dy, e.db2, True, True)):
        def launch(depth): e.depth = depth; e.gradient(*rest)
        good &= examine(f"{rows} {name}", DEPTHS, [rest[2]], launch)
    return good


def flash(tokens):
    a = Attention([(0, tokens, 0, tokens)], 32, 4, 128)
    runs = {tuple(f.values()): a.flash(**f) for f in FLASH}
    return examine(f"flash, {tokens} tokens", list(runs), [a.o, a.lse], lambda tile: runs[tile]())


torch.manual_seed(0)
results = [experts(int(rows)) for rows in sys.argv[1:] or ["256"]] + [flash(1024), flash(4096)]
sys.exit(0 if all(results) else 1)
