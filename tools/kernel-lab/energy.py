"""Joules of the kernels that take most of a step: each is launched for a second, while the driver's counter of energy runs on.
Prints its time when the GPU has rested (full clock), its time, power and clock under that load, and what a product costs beside the
dense one of cuBLAS. At a card's power limit a kernel's time is its energy over that limit. `python3 energy.py [rows an expert ...]`"""
import sys
import time
import pynvml
import torch
import attention
from bench import graph, inner, routing
from lab import DACT, DOWN, DX, UP, Experts

pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(0)


def timed(g, replays):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record()
    for _ in range(replays): g.replay()
    b.record()
    b.synchronize()
    return a.elapsed_time(b) / replays / inner


def measure(name, work, flops=0.0, seconds=1.0):
    try:
        g = graph(work)
    except Exception as e:
        return print(name, repr(e)[:300], flush=True)
    time.sleep(0.3)
    rested = timed(g, 1)
    replays = max(1, int(1000 * seconds / rested / inner / 4))
    timed(g, replays)
    before, clocks = pynvml.nvmlDeviceGetTotalEnergyConsumption(device), []
    total = 0.0
    for _ in range(3):
        total += timed(g, replays)
        clocks.append(pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM))
    joules = (pynvml.nvmlDeviceGetTotalEnergyConsumption(device) - before) / 1000 / (3 * replays * inner)
    ms = total / 3
    rate = f" {flops / ms / 1e9:5.0f} TFLOP/s (rested {flops / rested / 1e9:4.0f}), {1e12 * joules / flops:.2f} pJ a FLOP" if flops else ""
    print(f"{name:24} rested {1000 * rested:7.1f} us, loaded {1000 * ms:7.1f}; {joules / ms * 1000:4.0f} W, {1000 * joules:7.1f} mJ,"
          f" {min(clocks)} to {max(clocks)} MHz{rate}", flush=True)


def experts(rows, kind="drawn"):
    H, F, E, K = 2048, 768, 128, 8
    e = Experts(routing(kind, E, rows * E // K, K), H, F, E, K, 16)
    e.route(); e.up(); e.down(); e.dact(); e.dx(); e.gradients()
    y, base = e.y0.clone(), 2.0 * e.R * F * H
    for name, work, flops in (
            ("up", e.up, 2 * base), ("down", e.down, base), ("dact", e.dact, base), ("q1, db1", e.output_backward, 0),
            ("dX", lambda: e.gemm(DX), 2 * base), ("gradients", e.gradients, 0), ("combine", lambda: e.combine(y), 0),
            ("combine_backward", lambda: e.combine_backward(y), 0)):
        measure(f"{name} {rows} {kind}", work, flops)


def main():
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    measure("dense 8192", lambda: torch.mm(a, b), 2.0 * 8192 ** 3)
    for name in ("qwen4k", "qwen8k"):
        spans, Q, G, D = attention.SHAPES[name]
        x = attention.Attention(spans, Q, G, D)
        flops = sum(4.0 * D * Q * (n * k - n * n / 2) for _, n, _, k in spans)
        measure(f"attention {name}", x.hopper(), flops)
        measure(f"attention backward {name}", x.hopper_backward(), 2.5 * flops)
    big = torch.empty(2 << 30, device="cuda", dtype=torch.uint8)
    measure("copy of 1 GiB", lambda: big[:1 << 30].copy_(big[1 << 30:]))
    for rows in sys.argv[1:] or ["256", "512"]: experts(int(rows))
    measure("dense 8192", lambda: torch.mm(a, b), 2.0 * 8192 ** 3)


if __name__ == "__main__": main()
