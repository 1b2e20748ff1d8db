#!/usr/bin/env python3
"""Does what Martlet wrote mean the same to transformers and PEFT? Compares logits in float32.

    peft_roundtrip.py CHECKPOINT ADAPTER --tokens-file ids.json --logits logits.safetensors
    peft_roundtrip.py MERGED             --tokens-file ids.json --logits logits.safetensors
    peft_roundtrip.py CHECKPOINT ADAPTER --tokens-file ids.json --merged MERGED

ids.json: a list of token ids, or a list of such lists (lengths may differ; each is run alone).
logits.safetensors: what Martlet computed: tensor `logits` [T, V] or [S, T, V], or `logits.0`, `logits.1`, ... [T, V].
Fails if an adapter tensor is not used, if the adapter changes nothing, or if logits differ by more than --tolerance.
A merged checkpoint in bf16 is rounded: give that comparison a larger tolerance. Needs tools/goldens/requirements.txt.
"""
import argparse
import json
import re
import sys
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def load(checkpoint):
    model, report = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    wrong = {kind: sorted(map(str, report[kind])) for kind in report if kind.endswith("_keys") and report[kind]}
    if wrong:
        sys.exit(f"{checkpoint}: tensors and config.json do not agree: {wrong}")
    if getattr(model.config, "num_experts", None):
        model.set_experts_implementation("eager")
    return model.eval()


def with_adapter(model, adapter):
    """`model` with the adapter; every tensor of the file must have become a parameter with the same values."""
    file = load_file(adapter / "adapter_model.safetensors")
    model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).eval()
    loaded = {name.replace(".default.", "."): p for name, p in model.named_parameters() if ".lora_" in name}
    if any(re.search(r"\.experts\.\d+\.", name) for name in file):  # PEFT fuses these; only the logits can judge them
        file, loaded = ({k: v for k, v in tensors.items() if ".mlp." not in k} for tensors in (file, loaded))
    unused, empty = sorted(file.keys() - loaded.keys()), sorted(loaded.keys() - file.keys())
    if unused or empty:
        sys.exit(f"{adapter}: PEFT does not use {len(unused)} of {len(file)} tensors, e.g. {unused[:3]}; "
                 f"{len(empty)} that it expects are missing, e.g. {empty[:3]}")
    changed = [name for name in file if not torch.equal(file[name].float(), loaded[name].detach().float())]
    if changed:
        sys.exit(f"{adapter}: PEFT changed {len(changed)} tensors on loading, e.g. {changed[:3]}")
    return model


def run(model, sequences):
    """Logits [T, V] of each sequence."""
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float() for ids in sequences]


def written_logits(path, count):
    tensors = load_file(path)
    if "logits" in tensors:
        logits = tensors["logits"].float()
        return list(logits) if logits.dim() == 3 else [logits]
    missing = [f"logits.{i}" for i in range(count) if f"logits.{i}" not in tensors]
    if missing:
        sys.exit(f"{path}: holds {sorted(tensors)[:5]}; expected `logits`, or {missing}")
    return [tensors[f"logits.{i}"].float() for i in range(count)]


def largest_difference(ours, theirs):
    if [tuple(a.shape) for a in ours] != [tuple(b.shape) for b in theirs]:
        sys.exit(f"shapes differ: {[tuple(a.shape) for a in ours]} against {[tuple(b.shape) for b in theirs]}")
    distance = max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
    return distance if distance == distance else float("inf")  # NaN is not agreement


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("adapter", type=Path, nargs="?")
    parser.add_argument("--tokens-file", type=Path, required=True)
    parser.add_argument("--logits", type=Path, help="logits that Martlet wrote")
    parser.add_argument("--merged", type=Path, help="checkpoint that must equal CHECKPOINT with ADAPTER")
    parser.add_argument("--write", type=Path, help="write the judge's logits here")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="absolute, on logits (default %(default)s)")
    parser.add_argument("--may-be-zero", action="store_true", help="accept an adapter that changes no logit (B = 0)")
    options = parser.parse_args()
    if not (options.logits or options.merged or options.write):
        parser.error("nothing to compare: give --logits, --merged or --write")

    ids = json.loads(options.tokens_file.read_text())
    sequences = ids if isinstance(ids[0], list) else [ids]
    model = load(options.checkpoint)
    logits = base = run(model, sequences)
    report = {"sequences": len(sequences), "tokens": sum(map(len, sequences)),
              "largest_logit": max(x.abs().max().item() for x in logits)}
    if options.adapter:
        logits = run(with_adapter(model, options.adapter), sequences)
        report["adapter_changes_logits_by"] = largest_difference(logits, base)
    if options.write:
        save_file({f"logits.{i}": x.contiguous() for i, x in enumerate(logits)}, options.write)
    differences = {}
    if options.logits:
        differences["martlet"] = largest_difference(written_logits(options.logits, len(sequences)), logits)
    if options.merged:
        differences["merged"] = largest_difference(run(load(options.merged), sequences), logits)
    print(json.dumps(report | {f"{k}_max_abs_diff": v for k, v in differences.items()}, indent=2))

    if options.adapter and report["adapter_changes_logits_by"] == 0 and not options.may_be_zero:
        sys.exit("the adapter changes nothing (all B zero?); --may-be-zero accepts that")
    if bad := {k: v for k, v in differences.items() if not v <= options.tolerance}:
        sys.exit(f"above the tolerance of {options.tolerance}: {bad}")


if __name__ == "__main__":
    main()
