#!/usr/bin/env python3
"""Does a run on the GPU learn what the same run learns on the CPU? Every switch on, then the fast ways.

    gpu_training.py --martlet .build/release/martlet [--devices cuda-fp32,cuda,cuda@7.5] [--steps 20] [--keep FOLDER]

Makes a tiny model (a dense layer between sparse ones) and data, trains it on the CPU and on each device, and compares the loss of
every step: float32 within 1e-4 of it, bf16 within 2 %, fp16 within 0.5 %. Of long packed sequences, which cross the tiles' borders,
also every B of the adapter: float32 within 1e-3 of its size, bf16 within 10 %, fp16 within 2.5 %. "cuda@7.5" is the GPU standing in
for one of compute capability 7.5 (MARTLET_CAPABILITY), in fp16, which does not train whole weights. Fails beyond that, or if
nothing was learned. Standard library only.
"""
import argparse
import array
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

BOUNDS = {"cpu": 1e-4, "cuda-fp32": 1e-4, "cuda": 0.02, "cuda@7.5": 0.005}
ADAPTER_BOUNDS = {"cpu": 1e-3, "cuda-fp32": 1e-3, "cuda": 0.1, "cuda@7.5": 0.025}
EVERYTHING = dict(
    train_router="true", router_aux_loss_coef=0.02, router_z_loss_coef=0.001, lora_dropout=0.1, use_rslora="true", lora_r=6,
    lora_alpha=8, optim="adamw_8bit", tile_tokens=96, gradient_accumulation_steps=3)
CASES = {
    # Dropout takes the experts one after another; nothing here is a multiple of 16.
    "every switch on": EVERYTHING,
    # Grouped products, at a rank that is padded and at one that is not.
    "fast ways, rank 6": dict(lora_r=6, lora_alpha=12, tile_tokens=96, gradient_accumulation_steps=3),
    "fast ways, rank 16": dict(lora_r=16, lora_alpha=32, optim="adamw_8bit", gradient_accumulation_steps=2),
    "every weight": dict(
        method="full", train_router="true", learning_rate=1e-3, tile_tokens=96, gradient_accumulation_steps=3),
    "every weight, 8 bits": dict(method="full", optim="adamw_8bit", learning_rate=1e-3, gradient_accumulation_steps=2),
    # Nearly proportional to the gradients (epsilon), so that the adapters can be compared as well.
    "long packed batch": dict(
        data="long.jsonl", max_length=800, tile_tokens=192, gradient_accumulation_steps=2, max_steps=3, lora_r=16, lora_alpha=32,
        adam_epsilon=0.01, learning_rate=0.03),
}


def read_tensors(path):
    """The entries of a safetensors file, and the bytes behind them."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return header, data[8 + size:]


def with_dense_layer(folder, layer, inner, seed=5):
    """Replaces the experts of a layer by one MLP, in the files that `martlet init` wrote."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"mlp_only_layers": [layer], "intermediate_size": inner, "decoder_sparse_step": 1}
    (folder / "config.json").write_text(json.dumps(config))
    header, body = read_tensors(folder / "model.safetensors")
    tensors = {name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])]) for name, entry in header.items()
               if not name.startswith(f"model.layers.{layer}.mlp.")}
    draw, hidden = random.Random(seed), config["hidden_size"]
    for name, shape in {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}.items():
        words = (struct.unpack("<I", struct.pack("<f", draw.gauss(0, 0.12)))[0] >> 16 for _ in range(inner * hidden))
        tensors[f"model.layers.{layer}.mlp.{name}_proj.weight"] = ("BF16", shape, b"".join(struct.pack("<H", w) for w in words))
    header, parts, at = {}, [], 0
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(values)]}
        parts.append(values)
        at += len(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def write_data(path, rows, shortest, longest):
    draw = random.Random(1)
    words = ["".join(draw.choice("abcdefghijklmnop") for _ in range(draw.randint(2, 7))) for _ in range(60)]
    with open(path, "w") as file:
        for _ in range(rows):
            file.write(json.dumps({"text": " ".join(draw.choice(words) for _ in range(draw.randint(shortest, longest)))}) + "\n")


class Run:
    """A run of `martlet train`: the loss of each step, and each tensor of what was trained."""

    def __init__(self, martlet, home, case, settings, device, steps, label=None):
        out = home / f"{case.replace(' ', '-').replace(',', '')}-{label or device}"
        kind, _, capability = device.partition("@")
        recipe = dict(
            model=home / "model", data="data.jsonl", max_length=128, per_device_train_batch_size=2, max_steps=steps,
            learning_rate=3e-3, sample_prompts=0, device=kind, output_dir=out, resume="never") | settings
        recipe["dataset"] = f"[{home / recipe.pop('data')}]"
        path = out.with_suffix(".yaml")
        path.write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()))
        run = subprocess.run([martlet, "train", path], capture_output=True, text=True,
                             env=os.environ | ({"MARTLET_CAPABILITY": capability} if capability else {}))
        if run.returncode:
            sys.exit(f"{case}, {device}: martlet failed\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}")
        for line in run.stdout.splitlines():
            if line.startswith("note: "):
                print(f"    {device}: {line}")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        self.losses = [row["loss"] for row in rows if "loss" in row and "learning_rate" in row]
        self.steps = recipe["max_steps"]
        self.trained = out / f"checkpoint-{self.steps}" / "parameters.safetensors"

    def factors(self):
        """Every B of the adapter, which begins as zeros."""
        header, body = read_tensors(self.trained)
        return {name: array.array("f", body[slice(*entry["data_offsets"])]) for name, entry in header.items()
                if name.endswith(".lora_B")}


def apart(found, wanted):
    """The largest distance of a tensor, relative to its size (Euclidean)."""
    worst = 0.0 if wanted and found.keys() == wanted.keys() else float("inf")
    for name, w in wanted.items():
        distance = math.dist(found.get(name, []), w) if len(found.get(name, [])) == len(w) else float("inf")
        worst = max(worst, distance / (math.hypot(*w) or 1e-30))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--martlet", default=".build/release/martlet")
    parser.add_argument("--devices", default="cuda-fp32,cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cases", action="append", choices=list(CASES), help="only these; may be repeated")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave everything there")
    options = parser.parse_args()
    martlet, failures = os.path.abspath(options.martlet), 0
    with tempfile.TemporaryDirectory() as scratch:
        home = options.keep or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [martlet, "init", home / "model", "--layers", "3", "--hidden", "64", "--heads", "4", "--kv-heads", "2", "--head-dim",
             "64", "--experts", "8", "--experts-per-token", "2", "--expert-inner", "48", "--std", "0.12"],
            check=True, stdout=subprocess.DEVNULL)
        with_dense_layer(home / "model", 1, 88)
        write_data(home / "data.jsonl", 400, 3, 30)
        write_data(home / "long.jsonl", 40, 30, 140)
        for case in options.cases or CASES:
            reference = Run(martlet, home, case, CASES[case], "cpu", options.steps, "reference")
            losses = reference.losses
            print(f"{case}: {len(losses)} steps, loss {losses[0]:.4f} -> {losses[-1]:.4f} on the CPU", flush=True)
            failures += len(losses) != reference.steps or not losses[-1] < 0.97 * losses[0]
            for device in options.devices.split(","):
                if CASES[case].get("method") == "full" and "@" in device:
                    continue
                run = Run(martlet, home, case, CASES[case], device, options.steps)
                same = len(run.losses) == len(losses)
                gaps = [abs(a - b) / b for a, b in zip(run.losses, losses)] if same else [float("inf")]
                sound, text = max(gaps) <= BOUNDS[device], ""
                if "adam_epsilon" in CASES[case]:
                    distance = apart(run.factors(), reference.factors())
                    sound = sound and distance <= ADAPTER_BOUNDS[device]
                    text = f"; adapter {distance:.1e} apart, {ADAPTER_BOUNDS[device]:.0e} may be"
                failures += not sound
                print(f"    {'ok    ' if sound else 'BROKEN'} {device}: last loss {run.losses[-1]:.4f}, at most {max(gaps):.1e} apart "
                      f"(step {gaps.index(max(gaps)) + 1}), {BOUNDS[device]:.0e} may be{text}", flush=True)
    sys.exit(f"{failures} comparisons failed" if failures else 0)


if __name__ == "__main__":
    main()
