#!/usr/bin/env python3
"""500 steps on real text: does the GPU in bf16 learn what the CPU in float32 learned, and the same bytes each time?

    gpu_curve.py --martlet .build/release/martlet [--text runs/text.txt] [--keep FOLDER] [--no-skew | --no-curve]

The text is that of tools/fetch-text.sh (six novels, made there if it is missing), the model `martlet init` makes of it: 115.5 M
parameters; both are checked against the checksums of docs/benchmarks/curve-cpu.json, which holds the CPU's losses. Then:
the final validation loss within 1 % of the CPU's, the same seed twice the same bytes, killed (kill -9) after step 250 and resumed
the same bytes; and a step of Qwen3-30B-A3B whose tokens nearly all go to 8 of 128 experts takes at most 1.5 times the balanced one.
One H200: about a minute; the steps are timed, so let nothing else run on the GPU meanwhile. Standard library only.
"""
import argparse
import filecmp
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
MODEL = "--layers 8 --hidden 512 --heads 8 --kv-heads 4 --head-dim 64 --experts 32 --experts-per-token 4 --expert-inner 256 --vocab 8192 --context 1024 --seed 5"
STEPS = 500
RECIPE = f"""model: model
dataset: [text.txt]
eval_fraction: 0.02
max_length: 512
per_device_train_batch_size: 2
gradient_accumulation_steps: 1
max_steps: {STEPS}
eval_steps: {STEPS // 2}
save_steps: {STEPS // 2}
lora_r: 16
lora_alpha: 32
learning_rate: 2e-3
lr_scheduler_type: cosine
warmup_steps: 20
sample_prompts: 0
seed: 7
"""
failures = 0


def tell(sound, text):
    global failures
    failures += not sound
    print(f"{'ok    ' if sound else 'BROKEN'} {text}", flush=True)


def checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prepare(martlet, home, text, wanted):
    if not text.exists():
        subprocess.run([REPO / "tools/fetch-text.sh", text], check=True)
    (home / "text.txt").write_bytes(text.read_bytes())
    subprocess.run([martlet, "init", "model", "--text", "text.txt"] + MODEL.split(), cwd=home, check=True, stdout=subprocess.DEVNULL)
    (home / "run.yaml").write_text(RECIPE)
    for name, path in (("text_sha256", "text.txt"), ("weights_sha256", "model/model.safetensors")):
        tell(checksum(home / path) == wanted[name], f"{path} is that of the CPU's run")


def train(martlet, home, device, name, kill=False):
    began = time.time()
    process = subprocess.Popen(
        [martlet, "train", "run.yaml", "--set", f"device={device}", "--set", f"output_dir={name}"], cwd=home,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if kill:
        while process.poll() is None and not (home / name / f"checkpoint-{STEPS // 2}").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    text = process.communicate()[0]
    if process.returncode != (-signal.SIGKILL if kill else 0):
        sys.exit(f"{name}: exit code {process.returncode}\n{text[-3000:]}")
    return time.time() - began


def compare_bytes(home, what, first, second):
    files = ["adapter/adapter_model.safetensors"] + [f"checkpoint-{STEPS}/{name}.safetensors" for name in ("parameters", "optimizer")]
    unequal = [file for file in files if not filecmp.cmp(home / first / file, home / second / file, shallow=False)]
    tell(not unequal, f"{what}: " + (f"unequal {unequal}" if unequal else "adapter, parameters and optimizer state are the same bytes"))


def compare_losses(home, name, wanted):
    rows = [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "learning_rate" in row]
    for step, cpu in wanted["eval_losses"].items():
        found = [row["eval_loss"] for row in rows if "eval_loss" in row and row["step"] == int(step)][-1]
        tell(abs(found / cpu - 1) <= 0.01, f"validation loss at step {step}: {found:.4f}, the CPU's {cpu:.4f} ({100 * (found / cpu - 1):+.2f} %)")
    late, cpu = (sum(x[-100:]) / 100 for x in (losses, wanted["losses"]))
    tell(len(losses) == STEPS and abs(late / cpu - 1) <= 0.01, f"mean of the last hundred training losses: {late:.4f}, the CPU's {cpu:.4f}")


def curve(martlet, home, options):
    wanted = json.loads((REPO / "docs/benchmarks/curve-cpu.json").read_text())
    home.mkdir(parents=True, exist_ok=True)
    prepare(martlet, home, options.text, wanted)
    seconds = train(martlet, home, options.device, "first")
    compare_losses(home, "first", wanted)
    again = train(martlet, home, options.device, "again")
    print(f"       {STEPS} steps with start, validation and files: {seconds:.1f} s, again {again:.1f} s")
    compare_bytes(home, "the same seed twice", "first", "again")
    train(martlet, home, options.device, "killed", kill=True)
    train(martlet, home, options.device, "killed")
    compare_bytes(home, f"killed after step {STEPS // 2} and resumed", "first", "killed")


def skew(martlet, layers):
    def step(*more):
        run = subprocess.run(
            [martlet, "bench", "step", "--device", "cuda", "--preset", "qwen3-30b-a3b", "--layers", str(layers), "--tokens", "4096",
             "--steps", "5", "--warmup", "2", "--json"] + list(more), capture_output=True, text=True)
        if run.returncode:
            sys.exit(run.stdout + run.stderr)
        return json.loads(run.stdout)

    even, skewed = step(), step("--busy-experts", "8")
    ratio = skewed["step_seconds"] / even["step_seconds"]
    tell(ratio <= 1.5 and skewed["load_max_over_mean"] > 8,
         f"skewed step ({skewed['load_max_over_mean']:.1f} times the mean): {1000 * skewed['step_seconds']:.1f} ms, balanced "
         f"({even['load_max_over_mean']:.1f}) {1000 * even['step_seconds']:.1f} ms: {ratio:.2f} times")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--martlet", default=".build/release/martlet")
    parser.add_argument("--text", type=Path, default=REPO / "runs/text.txt")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=48, help="of the skewed step's model")
    parser.add_argument("--no-skew", action="store_true")
    parser.add_argument("--no-curve", action="store_true")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave everything there")
    options = parser.parse_args()
    martlet = os.path.abspath(options.martlet)
    if not options.no_curve:
        with tempfile.TemporaryDirectory() as scratch:
            curve(martlet, options.keep or Path(scratch), options)
    if not options.no_skew:
        skew(martlet, options.layers)
    sys.exit(f"{failures} checks failed" if failures else 0)


if __name__ == "__main__":
    main()
