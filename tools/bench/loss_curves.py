#!/usr/bin/env python3
"""Draws the training losses of runs on one picture (SVG), smoothed over 10 steps.

    loss_curves.py OUT.svg NAME=run/metrics.jsonl NAME=other/metrics.jsonl
"""
import json
import sys

WIDTH, HEIGHT, LEFT, BOTTOM, SMOOTH = 720, 360, 56, 36, 10
COLOURS = ["#1f6feb", "#d1242f", "#1a7f37"]


def losses(path):
    rows = [json.loads(line) for line in open(path)]
    values = [row["loss"] for row in rows if "loss" in row]
    return [sum(values[max(0, i - SMOOTH + 1):i + 1]) / min(SMOOTH, i + 1) for i in range(len(values))]


def main(out, *runs):
    curves = [(name, losses(path)) for name, path in (run.split("=", 1) for run in runs)]
    low, high = (f(f(c) for _, c in curves) for f in (min, max))
    steps = max(len(c) for _, c in curves)
    x = lambda i: LEFT + i / (steps - 1) * (WIDTH - LEFT - 12)
    y = lambda v: 12 + (high - v) / (high - low) * (HEIGHT - BOTTOM - 24)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for k in range(5):
        v = low + (high - low) * k / 4
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ddd"/>'
                     f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.2f}</text>')
    for k in range(6):
        i = (steps - 1) * k / 5
        parts.append(f'<text x="{x(i):.1f}" y="{HEIGHT - 16}" text-anchor="middle">{round(i) + 1}</text>')
    for n, (name, curve) in enumerate(curves):
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(curve))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[n]}" stroke-width="1.5" opacity="0.75"/>'
                     f'<text x="{WIDTH - 20}" y="{28 + 18 * n}" text-anchor="end" fill="{COLOURS[n]}">{name}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 2}">step; loss in nats, mean of the last {SMOOTH} steps</text></svg>')
    open(out, "w").write("\n".join(parts) + "\n")


main(*sys.argv[1:])
