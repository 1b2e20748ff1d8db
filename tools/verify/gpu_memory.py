#!/usr/bin/env python3
"""Does what lives in host memory change a single byte of what a GPU trains, or a kill at any moment?

    gpu_memory.py --martlet .build/release/martlet [--methods lora,full] [--optims adamw_8bit,adamw] [--keep FOLDER]

Trains a small random model three times with one seed: everything on the GPU; under a `memory_limit` that sends state, gradients,
hidden states and attention's outputs to host memory (the plan is asked, and must say so); and under that limit again, killed
(kill -9) as soon as a checkpoint is there, then resumed under other limits and killed once more on the way. Parameters, optimizer
state and what was exported must be equal byte for byte. Run it alone: a limit counts all that is in use on the GPU, and what begins
or ends there meanwhile makes it begin again, three times at most. `martlet doctor --gpu` compares the same without limits.
Standard library only.
"""
import argparse
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = dict(layers=6, hidden=256, heads=8, kv_heads=4, head_dim=64, experts=16, experts_per_token=4, expert_inner=128, vocab=2048,
             context=1024, std=0.05)
# Steps between checkpoints.
SAVED = 10
OUT = ("optimizer state", "gradients", "hidden states", "kept activations")


def write_text(path):
    draw, words = random.Random(1), []
    for _ in range(900):
        words.append("".join(draw.choice("abcdefghijklmnoprstuvw") for _ in range(draw.randint(2, 8))))
    path.write_text("\n".join(" ".join(draw.choice(words) for _ in range(400)) for _ in range(300)) + "\n")


class Failed(Exception):
    pass


class Runs:
    def __init__(self, martlet, home, method, optim, options):
        self.martlet, self.home, self.device = martlet, home, options.device
        self.recipe = home / f"{method}-{optim}.yaml"
        settings = dict(
            model=home / "model", dataset=f"[{home / 'text.txt'}]", method=method, optim=optim, max_length=512,
            per_device_train_batch_size=4, gradient_accumulation_steps=1, tile_tokens=128, max_steps=options.steps, save_steps=SAVED,
            learning_rate=2e-3 if method == "lora" else 5e-4, sample_prompts=0, seed=3, device=options.device)
        if method == "lora":
            settings |= dict(lora_r=16, train_router="true")
        self.recipe.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))

    def command(self, verb, *sets):
        return [self.martlet, verb, self.recipe] + [part for text in sets for part in ("--set", text)]

    def plan(self, limit=None):
        """The plan under a limit in MiB; None where there is none."""
        sets = [] if limit is None else [f"memory_limit={limit}MiB"]
        run = subprocess.run(self.command("plan", *sets) + ["--json"], capture_output=True, text=True)
        if run.returncode and (limit is None or "memory_limit" not in run.stderr):
            raise Failed(run.stdout + run.stderr)
        return None if run.returncode else json.loads(run.stdout)

    def tightest(self):
        """A limit in MiB, within 4 of the smallest, under which weights stay on the GPU and all of `OUT` has left, and its plan."""
        everything = self.plan()
        low, high = everything["process_bytes"] >> 20, everything["process_bytes"] + everything["arena_bytes"] >> 20

        def stays(plan):
            return plan and any("stay decoded" in choice for choice in plan["choices"])

        while high - low > 4:
            middle = (low + high) // 2
            low, high = (low, middle) if stays(self.plan(middle)) else (middle, high)
        # What waits in host memory has two places on the device: with a little less, outputs would be made again instead.
        for limit in range(high, high + 40, 4):
            plan = self.plan(limit)
            if stays(plan) and not missing(plan):
                break
        # Room for what the driver takes between this and a later process.
        return limit + 2, plan

    def train(self, name, *sets, kill_at=None, resumes=False):
        out = self.home / name
        if not resumes:
            shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(
            self.command("train", f"output_dir={out}", *sets), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if kill_at:
            checkpoint = out / f"checkpoint-{kill_at}"
            while process.poll() is None and not checkpoint.exists():
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        text = process.communicate()[0]
        if process.returncode != (-signal.SIGKILL if kill_at else 0):
            raise Failed(f"{name}: exit code {process.returncode}\n{text[-3000:]}")
        return out

    def in_use(self):
        """MiB on the GPU that are not the run's."""
        return 0 if self.device == "cpu" else self.plan()["process_bytes"] >> 20


def missing(plan):
    return [row for row in OUT if not any(choice.startswith(f"in host memory: {row},") for choice in plan["choices"])]


def written(folder, steps):
    files = [f"checkpoint-{steps}/parameters.safetensors", f"checkpoint-{steps}/optimizer.safetensors"]
    for export in ("adapter/adapter_model.safetensors", "merged/model.safetensors"):
        if (folder / export).exists():
            files.append(export)
    return files


def compare(name, whole, other, steps):
    files = written(whole, steps)
    unequal = [file for file in files if not ((other / file).exists() and filecmp.cmp(whole / file, other / file, shallow=False))]
    # A run that learned nothing would be equal as well.
    early = whole / f"checkpoint-{SAVED}/parameters.safetensors"
    moved = not filecmp.cmp(early, whole / files[0], shallow=False)
    sound = len(files) == 3 and not unequal and moved
    print(f"  {'ok    ' if sound else 'BROKEN'} {name}: {len(files)} files" + (f", unequal: {unequal}" if unequal else ", the same bytes"),
          flush=True)
    return 0 if sound else 1


def examine(runs, method, optim, steps):
    everything, began = runs.plan(), time.time()
    limit, least = runs.tightest() if runs.device != "cpu" else (None, everything)
    print(f"{method}, {optim}: {(everything['arena_bytes'] >> 20)} MiB on the device, or "
          f"{(least['arena_bytes'] >> 20)} and {(least['host_bytes'] >> 20)} in host memory (limit {limit} MiB)")
    failures = 0
    if runs.device != "cpu" and (missing(least) or everything["host_bytes"]):
        print(f"  BROKEN the plan leaves on the device: {missing(least)}; without a limit {everything['host_bytes']} bytes are in host memory")
        failures += 1
    tight = [] if limit is None else [f"memory_limit={limit}MiB"]
    name = f"{method}-{optim}"
    whole = runs.train(f"{name}-whole")
    failures += compare("under the limit", whole, runs.train(f"{name}-tight", *tight), steps)
    runs.train(f"{name}-killed", *tight, kill_at=SAVED)
    middle = [] if limit is None else [f"memory_limit={(limit + (everything['process_bytes'] + everything['arena_bytes'] >> 20)) // 2}MiB"]
    runs.train(f"{name}-killed", *middle, kill_at=2 * SAVED, resumes=True)
    failures += compare("killed twice, resumed under other limits", whole, runs.train(f"{name}-killed", resumes=True), steps)
    print(f"  {time.time() - began:.1f} s", flush=True)
    return failures


def alone(runs, method, optim, steps):
    """Examines, again if something else began or ended on the GPU meanwhile."""
    for _ in range(3):
        before = runs.in_use()
        try:
            failures, reason = examine(runs, method, optim, steps), ""
        except Failed as failure:
            failures, reason = 1, f"  BROKEN {failure}\n"
        if abs(runs.in_use() - before) < 8:
            print(reason, end="", flush=True)
            return failures
        print("  something else began or ended on the GPU: again", flush=True)
    print("  BROKEN it was never alone on the GPU")
    return 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--martlet", default=".build/release/martlet")
    parser.add_argument("--methods", default="lora,full")
    parser.add_argument("--optims", default="adamw_8bit,adamw")
    parser.add_argument("--steps", type=int, default=4 * SAVED)
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself; nothing leaves memory there")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave everything there")
    options = parser.parse_args()
    martlet, failures = os.path.abspath(options.martlet), 0
    with tempfile.TemporaryDirectory() as scratch:
        home = (options.keep or Path(scratch)).absolute()
        home.mkdir(parents=True, exist_ok=True)
        write_text(home / "text.txt")
        shape = [part for key, value in SHAPE.items() for part in ("--" + key.replace("_", "-"), str(value))]
        subprocess.run([martlet, "init", home / "model", "--text", home / "text.txt"] + shape, check=True, stdout=subprocess.DEVNULL)
        for method, optim in zip(options.methods.split(","), options.optims.split(",")):
            failures += alone(Runs(martlet, home, method, optim, options), method, optim, options.steps)
    sys.exit(f"{failures} comparisons failed" if failures else 0)


if __name__ == "__main__":
    main()
