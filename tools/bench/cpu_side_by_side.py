#!/usr/bin/env python3
"""Martlet against transformers + PEFT on this CPU, taking turns (A B A B); prints a Markdown table with ratios.

    cpu_side_by_side.py --checkpoint /tmp/wide --tokens 1024 2048 --rounds 2 \\
        --ours 'martlet bench step {checkpoint} --tokens-file {tokens_file} --tokens {tokens} --steps {steps}'

The command of --ours is a template: {checkpoint} {tokens} {tokens_file} {steps} {warmup} {threads} are filled in. The
last line of its output that is a JSON object must hold `tokens_per_second`; `losses`, `trainable_count` and
`peak_rss_bytes` are used if they are there (the peak is otherwise the operating system's for that process).
A rival is dtype:attention:experts:checkpointing, as in peers_cpu.py. Every run is a process of its own, both sides
see the same tokens, and each number is the median over the rounds. --json keeps every single run.
"""
import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import peers_cpu

RIVALS = ["float32:sdpa:eager:off", "float32:sdpa:grouped_mm:off", "float32:sdpa:grouped_mm:on",
          "float32:eager:grouped_mm:off"]


def last_object(text):
    for line in reversed(text.splitlines()):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return row
    return None


def run_ours(template, values):
    """Runs the command and returns its JSON row, with the peak memory that the system saw if it names none."""
    command = [part.format(**values) for part in shlex.split(template)]
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(command, stdout=out, env=os.environ | {"OMP_NUM_THREADS": str(values["threads"])})
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        row = last_object(out.read())
    if child.returncode or not row or "tokens_per_second" not in row:
        sys.exit(f"{shlex.join(command)}\nended with {child.returncode} and "
                 f"{'no JSON object' if not row else 'no tokens_per_second'} in its output")
    return {"peak_rss_bytes": usage.ru_maxrss * 1024} | row


def run_rival(rival, options, values):
    dtype, attention, experts, checkpointing = rival.split(":")
    return peers_cpu.run(values | dict(
        dtype=dtype, attention=attention, experts=experts, checkpointing=checkpointing, timeout=options.timeout))


def measure(options, tokens, scratch):
    """Every run at this length: {"martlet" or rival: [row, ...]}."""
    vocabulary = json.loads((options.checkpoint / "config.json").read_text())["vocab_size"]
    file = Path(scratch) / f"tokens-{tokens}.json"
    file.write_text(json.dumps([random.Random(tokens).randrange(vocabulary) for _ in range(tokens)]))
    values = dict(checkpoint=str(options.checkpoint), tokens=tokens, tokens_file=str(file), steps=options.steps,
                  warmup=options.warmup, threads=options.threads)
    rows = {"martlet": [], **{rival: [] for rival in options.rivals}}
    for _ in range(options.rounds):
        for rival in options.rivals:
            rows["martlet"].append(run_ours(options.ours, values))
            rows[rival].append(run_rival(rival, options, values))
            print(f"{tokens} tokens, {rival}: done", file=sys.stderr)
    return rows


def median(rows, key):
    return statistics.median(row[key] for row in rows)


def table_lines(tokens, rows):
    """One Markdown line a rival; a ratio above 1 is in Martlet's favour."""
    ours = rows.pop("martlet")
    speed, peak = median(ours, "tokens_per_second"), median(ours, "peak_rss_bytes")
    for rival, theirs in rows.items():
        good = [row for row in theirs if "tokens_per_second" in row]
        name = rival.replace(":", ", ")
        if len(good) < len(theirs):
            why = next(row.get("skipped") or row.get("failed") for row in theirs if row not in good)
            yield f"| {tokens} | {name} | {speed:.0f} | - | - | {peak / 2**20:.0f} | - | - | {why} |"
            continue
        their_speed, their_peak = median(good, "tokens_per_second"), median(good, "peak_rss_bytes")
        note = "-"
        if ours[0].get("losses"):
            note = f"{abs(ours[0]['losses'][0] - good[0]['losses'][0]):.1e}"
        if ours[0].get("trainable_count", good[0]["trainable_count"]) != good[0]["trainable_count"]:
            note += f", trains {ours[0]['trainable_count']} against {good[0]['trainable_count']}"
        yield (f"| {tokens} | {name} | {speed:.0f} | {their_speed:.0f} | {speed / their_speed:.2f} "
               f"| {peak / 2**20:.0f} | {their_peak / 2**20:.0f} | {their_peak / peak:.2f} | {note} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="command template")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--rivals", nargs="+", default=RIVALS, metavar="DTYPE:ATTENTION:EXPERTS:CHECKPOINTING")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=1800, help="seconds a rival's run may take")
    parser.add_argument("--json", type=Path, help="write every run here")
    options = parser.parse_args()
    everything = {}
    print("| tokens | rival | ours, tokens/s | theirs | ratio | ours, peak MiB | theirs | ratio | first loss apart |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for tokens in options.tokens:
            everything[tokens] = measure(options, tokens, scratch)
            if options.json:
                options.json.write_text(json.dumps(everything, indent=1) + "\n")
            print("\n".join(table_lines(tokens, dict(everything[tokens]))), flush=True)


if __name__ == "__main__":
    main()
