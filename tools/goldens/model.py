#!/usr/bin/env python3
"""Makes the model goldens: tiny random Qwen3 checkpoints and what transformers and PEFT compute with them.

    python tools/goldens/model.py                     remake every case in Tests/ModelTests/ModelGoldens
    python tools/goldens/model.py --check             remake elsewhere and compare, nothing is written
    python tools/goldens/model.py --case moe_seed0 --out /tmp/big --sequence 96 --full \\
        --set hidden_size=256 --set num_experts=64    a bigger variant, on demand

The schema, the tolerances and the reasons are in docs/goldens.md. Needs tools/goldens/requirements.txt.
"""
import argparse
import hashlib
import json
import math
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import peft
import safetensors
import torch
import transformers
from checkpoint import draw_weights, spelled
from judge import OPTIMIZER, STEPS, Judge, TooClose, write_json
from safetensors.torch import load_file, save_file

HOME = Path(__file__).resolve().parents[2] / "Tests/ModelTests/ModelGoldens"
MARGIN = 1e-3  # least distance of a discrete choice (top-k of the router, greedy token) to the next candidate
NOISE = 4e-4  # most that transformers may be from itself: less than half of the tolerance after five steps
# Of what is also judged in bf16: docs/goldens.md's bounds, and how much of them transformers may lose itself.
HALF_BOUNDS = {"logits": 0.02, "packed": 0.02, "adapted logits": 0.02, "loss": 0.01, "adapted loss": 0.01, "auxiliary loss": 0.01,
               "adapter's gradients": 0.05, "all gradients": 0.05, "routers' gradients": 0.05}
HALF_SHARE = 0.7
DRAWS = 3000
SEQUENCE = 12
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# PEFT rewrites gate/up/down module names of an MoE model to its experts; as parameters they stay what they are.
DENSE_AMONG_SPARSE = [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")]


@dataclass
class Case:
    """One tiny model: `config` overrides the base; sizes are awkward on purpose (D != H/Q, I != H/2)."""

    seed: int
    config: dict
    modules: list = field(default_factory=lambda: list(ATTENTION))
    parameters: list | None = field(default_factory=lambda: list(EXPERTS))
    rslora: bool = False
    rank: int = 4
    alpha: int | None = None  # twice the rank
    spelling: str = "v4"  # of config.json: what the hub holds (v4) or what transformers 5 saves (v5)


DENSE = dict(
    architectures=["Qwen3ForCausalLM"], model_type="qwen3", attention_bias=False, attention_dropout=0.0, head_dim=12,
    hidden_act="silu", hidden_size=32, initializer_range=0.02, intermediate_size=44, max_position_embeddings=256,
    max_window_layers=2, num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=2, rms_norm_eps=1e-6,
    rope_scaling=None, rope_theta=10000.0, sliding_window=None, tie_word_embeddings=False, torch_dtype="bfloat16",
    use_cache=True, use_sliding_window=False, vocab_size=131)
MOE = DENSE | dict(
    architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", decoder_sparse_step=1, mlp_only_layers=[],
    moe_intermediate_size=20, norm_topk_prob=True, num_experts=6, num_experts_per_tok=2, output_router_logits=False,
    router_aux_loss_coef=0.05)
WIDE_DENSE = dict(modules=ATTENTION + ["gate_proj", "up_proj", "down_proj"], parameters=None)

CASES = {
    "moe_seed0": Case(0, MOE),
    "moe_seed1": Case(1, MOE | dict(
        hidden_size=40, num_attention_heads=3, num_key_value_heads=1, head_dim=14, num_experts=4,
        num_experts_per_tok=3, moe_intermediate_size=17, rms_norm_eps=1e-5, rope_theta=1e6)),
    "moe_seed2": Case(2, MOE | dict(
        num_attention_heads=6, num_key_value_heads=3, head_dim=10, num_experts=8, num_experts_per_tok=4,
        moe_intermediate_size=12, vocab_size=137), spelling="v5"),
    "moe_unnormalized": Case(3, MOE | dict(norm_topk_prob=False, num_experts=5)),
    "moe_first_dense": Case(4, MOE | dict(mlp_only_layers=[0], num_experts=5), parameters=EXPERTS + DENSE_AMONG_SPARSE),
    "moe_every_second": Case(5, MOE | dict(
        decoder_sparse_step=2, num_hidden_layers=3, num_experts=5, intermediate_size=28)),
    "moe_tied": Case(6, MOE | dict(tie_word_embeddings=True, num_experts=5)),
    "moe_rslora": Case(7, MOE | dict(num_experts=4, vocab_size=64), rslora=True),
    "dense_tied": Case(0, DENSE | dict(tie_word_embeddings=True), **WIDE_DENSE),
    "dense_untied": Case(1, DENSE | dict(rope_theta=5e6), **WIDE_DENSE),
}


def draw_case(case, folder, sequence, full, margin, router_margin):
    """Draws weights until no discrete choice of any run is close and, where bf16 is judged too, transformers does not lose most of
    what may be lost; returns (reference, the case's entry in the manifest)."""
    for attempt in range(DRAWS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(case.seed + 7919 * attempt)
        save_file(draw_weights(case.config, generator), folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", spelled(case.config, case.spelling))
        ids = torch.randint(case.config["vocab_size"], (2, sequence), generator=generator)
        labels = ids.clone()
        labels[0, :3], labels[1, :1] = -100, -100  # a prompt that is not learned
        labels[1, sequence // 2] = -100
        inputs = dict(input_ids=ids, labels=labels)
        try:
            reference, other = (
                Judge(folder, case, plain, full, margin, router_margin or margin).run(inputs) for plain in (True, False))
        except TooClose:
            continue
        own_noise = noise(reference, other)
        if max(own_noise.values(), default=0) > NOISE:
            continue
        told = dict(draw=attempt, config_spelling=case.spelling, noise=own_noise)
        if router_margin:
            each = [Judge(folder, case, plain).half_distances(inputs, reference) for plain in (True, False)]
            lost = {group: max(one[group] for one in each) for group in each[0]}
            if any(value > HALF_SHARE * HALF_BOUNDS[group] for group, value in lost.items()):
                continue
            told["bfloat16"] = {group: float(f"{value:.3g}") for group, value in lost.items()}
        return reference | {f"input.{name}": tensor.to(torch.int32) for name, tensor in inputs.items()}, told
    sys.exit(f"{folder.name}: no draw of {DRAWS} keeps every choice {margin} apart; a larger variant needs a smaller --margin")


def noise(reference, other):
    """How far transformers is from itself with its other kernels: the floor under every tolerance."""
    worst = {}
    for name, value in other.items():
        group = name if name.endswith(("logits", "loss", "losses")) else ".".join(name.split(".")[:2])
        if name.startswith(("grad.", "lora.grad.", "aux.grad.")):
            group = name.split("grad.")[0] + "grad (relative)"
        difference = (value - reference[name]).abs().max().item()
        if "grad" in group:
            difference /= max(reference[name].abs().max().item(), 1e-30)
        if not math.isfinite(difference):
            sys.exit(f"{name} is not finite")
        worst[group] = max(worst.get(group, 0.0), float(f"{difference:.0e}"))
    return {group: value for group, value in sorted(worst.items()) if value > 0}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions():
    return {m.__name__: m.__version__.split("+")[0] for m in (torch, transformers, peft, safetensors)}


def make(names, out, sequence=SEQUENCE, overrides=None, full=False, margin=MARGIN, router_margin=None, rank=4, alpha=None):
    manifest = {"made_by": "tools/goldens/model.py", "versions": versions(), "margin": margin, "steps": STEPS,
                "optimizer": OPTIMIZER, "cases": {}}
    for name in names:
        case, folder = CASES[name], out / name
        case.config, case.rank, case.alpha = case.config | (overrides or {}), rank, alpha
        reference, told = draw_case(case, folder, sequence, full, margin, router_margin)
        reference = {k: v.detach().contiguous().clone() for k, v in reference.items()}
        save_file(reference, folder / "reference.safetensors", metadata={"format": "pt"})
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        manifest["cases"][name] = {
            "seed": case.seed, **told,
            "sha256": {str(p.relative_to(folder)): digest(p) for p in files}}
        print(f"{name:18s} draw {told['draw']:4d}, {sum(p.stat().st_size for p in files) / 1e3:7.1f} kB, "
              f"loss {reference['forward.loss']:.5f}, lora {reference['lora.loss']:.5f}", flush=True)
    write_json(out / "MANIFEST.json", manifest)


def check(names, home):
    """Remakes the cases elsewhere and compares the bytes, then (another CPU rounds otherwise) the numbers."""
    listed = json.loads((home / "MANIFEST.json").read_text())["cases"]
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        make(names, Path(scratch))
        for old in sorted(p for name in names for p in (home / name).rglob("*") if p.is_file()):
            new = Path(scratch) / old.relative_to(home)
            case, _, file = str(old.relative_to(home)).partition("/")
            if listed[case]["sha256"].get(file) != digest(old):
                failures += 1
                print(f"{old.relative_to(home)}: not the file that MANIFEST.json lists")
            if new.exists() and old.read_bytes() == new.read_bytes():
                continue
            distance = math.inf
            if new.exists() and old.suffix == ".safetensors":
                a, b = load_file(old), load_file(new)
                if a.keys() == b.keys() and all(a[k].shape == b[k].shape for k in a):
                    distance = max((a[k].double() - b[k].double()).abs().max().item() for k in a)
            failures += distance > 1e-4
            print(f"{old.relative_to(home)}: bytes differ, largest difference {distance:.1e}")
    sys.exit(f"{failures} files differ" if failures else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; needs --out")
    parser.add_argument("--out", type=Path, default=HOME)
    parser.add_argument("--check", action="store_true", help="compare with what --out holds")
    parser.add_argument("--sequence", type=int, default=SEQUENCE, help="tokens a sequence")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="override a key of config.json")
    parser.add_argument("--full", action="store_true", help="also hidden states and every weight after training")
    parser.add_argument("--margin", type=float, default=MARGIN, help="least distance between discrete choices")
    parser.add_argument("--router-margin", type=float, help="the same of routers, in what is also judged in bf16")
    parser.add_argument("--rank", type=int, default=4, help="of the adapter")
    parser.add_argument("--alpha", type=int, help="of the adapter; default: twice its rank")
    parser.add_argument("--any-version", action="store_true", help="do not insist on requirements.txt")
    options = parser.parse_args()
    lines = Path(__file__).with_name("requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    print(json.dumps(versions()))
    if any(pins[name] != version for name, version in versions().items()) and not options.any_version:
        sys.exit(f"these are not the pinned versions {pins}; install requirements.txt or pass --any-version")
    changed = options.case or options.set or options.full or options.router_margin or options.alpha or options.rank != 4 or (
        options.sequence, options.margin) != (SEQUENCE, MARGIN)
    if changed and not options.check and options.out.resolve() == HOME:
        sys.exit("a subset or a variant does not belong among the committed goldens: give it a folder with --out")
    overrides = {key: json.loads(value) for key, value in (item.split("=", 1) for item in options.set)}
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    names = options.case or list(CASES)
    if options.check:
        check(names, options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    make(names, options.out, options.sequence, overrides, options.full, options.margin,
         options.router_margin, options.rank, options.alpha)


if __name__ == "__main__":
    main()
