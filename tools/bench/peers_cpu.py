#!/usr/bin/env python3
"""LoRA training of a Qwen3-MoE on the CPU with transformers and PEFT: the rival of Martlet's CPU benchmark.

    peers_cpu.py --make wide --checkpoint /tmp/wide      make a random checkpoint first (no training)
    peers_cpu.py --checkpoint /tmp/wide                  the whole matrix, one JSON line per configuration
    peers_cpu.py --checkpoint /tmp/wide --tokens 1024 --experts grouped_mm --attention sdpa --checkpointing off

One step: forward, backward and AdamW on one sequence of T random tokens (--tokens-file: the given ones), LoRA r 16,
alpha 32 on q, k, v, o and the experts, router frozen. Each configuration runs in a process of its own, so that its
peak memory (VmHWM) is its own. tokens_per_second is T over the median time of the steps after the warm-up.
Attention "best-eager" means: eager attention with the fastest experts implementation seen at that setting.
Needs tools/goldens/requirements.txt.
"""
import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

LORA = dict(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], task_type="CAUSAL_LM")
SHAPE = dict(
    hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4, head_dim=64, vocab_size=8192,
    intermediate_size=1024, max_position_embeddings=8192, norm_topk_prob=True, tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6}, router_aux_loss_coef=0.0)
PRESETS = {
    "wide": dict(num_experts=32, num_experts_per_tok=4, moe_intermediate_size=256),  # 115 M parameters
    "fine": dict(num_experts=128, num_experts_per_tok=8, moe_intermediate_size=64),  # the same, in 128 small experts
}


def make_checkpoint(folder, preset, overrides):
    """A random bf16 checkpoint whose routing is balanced: unit embeddings, residual outputs divided by sqrt(2 L)."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    torch.manual_seed(0)
    config = Qwen3MoeConfig(**(SHAPE | PRESETS[preset] | overrides))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                std = 1.0 if "embed_tokens" in name else p.shape[-1] ** -0.5
                std /= (2 * config.num_hidden_layers) ** 0.5 if "o_proj" in name or "down_proj" in name else 1
                p.normal_(0, std)
    model.to(torch.bfloat16).save_pretrained(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")


# ---- one configuration, in its own process --------------------------------------------------------------------


def high_water():
    """Peak resident memory of this process, bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def build(job):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, job["dtype"])
    attention = "eager" if job["attention"] == "best-eager" else job["attention"]
    model = AutoModelForCausalLM.from_pretrained(
        job["checkpoint"], dtype=dtype, attn_implementation=attention, experts_implementation=job["experts"])
    model.config.use_cache = False
    model = get_peft_model(model, LoraConfig(**LORA))
    if job["checkpointing"] == "on":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def tokens_of(job, model):
    import torch

    if job["tokens_file"]:
        ids = json.loads(Path(job["tokens_file"]).read_text())
        ids = ids[0] if isinstance(ids[0], list) else ids
        if len(ids) < job["tokens"]:
            raise ValueError(f"{job['tokens_file']} holds {len(ids)} tokens, {job['tokens']} are needed")
        return torch.tensor([ids[:job["tokens"]]])
    return torch.randint(model.config.vocab_size, (1, job["tokens"]), generator=torch.Generator().manual_seed(0))


def work(job):
    """Trains and returns the row of this configuration."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    model = build(job)
    loaded = high_water()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0)
    ids = tokens_of(job, model)
    losses, seconds = [], []
    for _ in range(job["warmup"] + job["steps"]):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    seconds = seconds[job["warmup"]:]
    median = statistics.median(seconds)
    return {"tokens_per_second": job["tokens"] / median, "step_seconds": median, "step_seconds_all": seconds,
            "peak_rss_bytes": high_water(), "peak_rss_after_load_bytes": loaded, "losses": losses,
            "trainable_count": sum(p.numel() for p in trainable),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}


# ---- the matrix -----------------------------------------------------------------------------------------------


def too_large(job):
    """Why a configuration cannot fit, or None. batched_mm gathers the expert matrices of every routed row."""
    config = json.loads((Path(job["checkpoint"]) / "config.json").read_text())
    available = int(next(x for x in Path("/proc/meminfo").read_text().splitlines()
                         if x.startswith("MemAvailable")).split()[1]) * 1024
    size = 2 if job["dtype"] == "bfloat16" else 4
    saved = 1 if job["checkpointing"] == "on" else config["num_hidden_layers"]
    need = 0
    if job["experts"] == "batched_mm":
        rows = job["tokens"] * config["num_experts_per_tok"]
        need = 2 * saved * rows * 3 * config["moe_intermediate_size"] * config["hidden_size"] * size
    if "eager" in job["attention"]:
        need += 3 * saved * config["num_attention_heads"] * job["tokens"] ** 2 * size
    return f"needs about {need / 2**30:.0f} GiB, {available / 2**30:.0f} free" if need > 0.8 * available else None


def run(job):
    """The row of a configuration: measured in a new process, or the reason why there is none."""
    if reason := too_large(job):
        return {"skipped": reason}
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1"}
    try:
        child = subprocess.run([sys.executable, __file__, "--worker", json.dumps(job)], env=environment,
                               capture_output=True, text=True, timeout=job["timeout"])
    except subprocess.TimeoutExpired:
        return {"skipped": f"ran past {job['timeout']} s"}
    if child.returncode:
        tail = child.stderr.strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
        return {"failed": tail[0][:300]}
    return json.loads(child.stdout.strip().splitlines()[-1])


def matrix(options):
    """Runs every combination; eager attention comes last, with the fastest experts implementation so far."""
    for dtype, tokens, checkpointing in itertools.product(options.dtype, options.tokens, options.checkpointing):
        speed = {}
        settings = [(a, e) for a in options.attention if a != "best-eager" for e in options.experts]
        if "best-eager" in options.attention:
            settings.append(("best-eager", None))
        for attention, experts in settings:
            experts = experts or max(speed, key=speed.get, default=options.experts[0])
            job = dict(checkpoint=str(options.checkpoint), tokens=tokens, dtype=dtype, attention=attention,
                       experts=experts, checkpointing=checkpointing, threads=options.threads, steps=options.steps,
                       warmup=options.warmup, timeout=options.timeout,
                       tokens_file=options.tokens_file and str(options.tokens_file))
            row = run(job)
            if "tokens_per_second" in row:
                speed[experts] = max(speed.get(experts, 0), row["tokens_per_second"])
            yield {key: value for key, value in job.items() if key != "timeout"} | row


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help="folder of a Qwen3-MoE checkpoint")
    parser.add_argument("--make", choices=PRESETS, help="write a random checkpoint of this shape there, and stop")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="with --make: another size")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--tokens-file", type=Path, help="JSON list of token ids, instead of random ones")
    parser.add_argument("--experts", nargs="+", default=["eager", "grouped_mm", "batched_mm"])
    parser.add_argument("--attention", nargs="+", default=["sdpa", "best-eager"],
                        choices=["sdpa", "eager", "best-eager"])
    parser.add_argument("--checkpointing", nargs="+", default=["off", "on"], choices=["off", "on"])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=1800, help="seconds a configuration may take")
    return parser, parser.parse_args()


def main():
    parser, options = arguments()
    if options.worker:
        print(json.dumps(work(json.loads(options.worker))))
        return
    if not options.checkpoint:
        parser.error("--checkpoint is needed")
    if options.make:
        overrides = {key: json.loads(value) for key, value in (item.split("=", 1) for item in options.set)}
        make_checkpoint(options.checkpoint, options.make, overrides)
        return
    for row in matrix(options):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
