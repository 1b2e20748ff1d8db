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
import os
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import peft
import safetensors
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

HOME = Path(__file__).resolve().parents[2] / "Tests/ModelTests/ModelGoldens"
MARGIN = 1e-3  # least distance of a discrete choice (top-k of the router, greedy token) to the next candidate
STEPS = 5
OPTIMIZER = dict(lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.5)  # a decay that five steps can show
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


class TooClose(Exception):
    """A discrete choice that rounding could flip: the weights are drawn again."""


def require_margin(scores, k):
    """Throws unless the k-th largest of each row of `scores` [*, n] leads the next by MARGIN."""
    top = scores.detach().float().topk(k + 1, -1)[0]
    if (top[..., k - 1] - top[..., k]).min() < MARGIN:
        raise TooClose


# ---- the checkpoint: names, shapes and values as the hub holds them ------------------------------------------


def is_sparse(config, layer):
    return ("num_experts" in config and layer not in config["mlp_only_layers"]
            and (layer + 1) % config["decoder_sparse_step"] == 0)


def hub_shapes(config):
    """Name -> shape of every tensor of the checkpoint, in the order of the forward pass."""
    hidden, head = config["hidden_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}

    def mlp(prefix, inner):
        shapes.update({f"{prefix}.gate_proj.weight": (inner, hidden), f"{prefix}.up_proj.weight": (inner, hidden),
                       f"{prefix}.down_proj.weight": (hidden, inner)})

    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (hidden,), f"{at}.self_attn.q_proj.weight": (query, hidden),
            f"{at}.self_attn.k_proj.weight": (key, hidden), f"{at}.self_attn.v_proj.weight": (key, hidden),
            f"{at}.self_attn.q_norm.weight": (head,), f"{at}.self_attn.k_norm.weight": (head,),
            f"{at}.self_attn.o_proj.weight": (hidden, query), f"{at}.post_attention_layernorm.weight": (hidden,)}
        if is_sparse(config, layer):
            shapes[f"{at}.mlp.gate.weight"] = (config["num_experts"], hidden)
            for expert in range(config["num_experts"]):
                mlp(f"{at}.mlp.experts.{expert}", config["moe_intermediate_size"])
        else:
            mlp(f"{at}.mlp", config["intermediate_size"])
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def draw_weights(config, generator):
    """Unit-gain matrices, norms around 1; every value is exact in bf16, so the file loses nothing."""
    def draw(name, shape):
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            return 1 + 0.2 * noise
        if name == "model.embed_tokens.weight":
            return noise * (0.25 if config["tie_word_embeddings"] else 1)
        return noise * (1.5 if name.endswith("mlp.gate.weight") else 1) / math.sqrt(shape[1])
    return {name: draw(name, shape).to(torch.bfloat16) for name, shape in hub_shapes(config).items()}


def spelled(config, spelling):
    """config.json as the hub holds it (v4) or as transformers 5 would save it (v5)."""
    if spelling == "v4":
        return config
    v5 = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype", "num_experts")}
    v5["rope_parameters"] = {"rope_theta": config["rope_theta"], "rope_type": "default"}
    v5["dtype"] = config["torch_dtype"]
    v5["transformers_version"] = transformers.__version__
    return v5 | ({"num_local_experts": config["num_experts"]} if "num_experts" in config else {})


def hub_names(tensors):
    """Names and layouts of transformers in memory -> of the hub: fused experts are split into one tensor each."""
    out = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if not stem.endswith("mlp.experts"):
            out[name] = tensor
            continue
        for expert, one in enumerate(tensor):
            parts = zip(("gate_proj", "up_proj"), one.chunk(2)) if leaf == "gate_up_proj" else [("down_proj", one)]
            out |= {f"{stem}.{expert}.{part}.weight": value for part, value in parts}
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


# ---- the judge ------------------------------------------------------------------------------------------------


@dataclass
class Judge:
    """Runs one checkpoint in transformers (float32), with the plain or the fast implementations."""

    folder: Path
    case: Case
    plain: bool = True
    full: bool = False

    def load(self):
        kinds = dict(attn_implementation="eager" if self.plain else "sdpa")
        if "num_experts" in self.case.config:
            kinds["experts_implementation"] = "eager" if self.plain else "batched_mm"
        model, report = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, output_loading_info=True, **kinds)
        wrong = [x for k in ("missing_keys", "unexpected_keys", "mismatched_keys") for x in report[k]]
        if wrong:
            sys.exit(f"{self.folder}: transformers reads the checkpoint differently: {wrong}")
        for module in self.routers(model).values():
            module.register_forward_hook(lambda m, _, out: require_margin(out[0], m.top_k))
        return model.eval()

    @staticmethod
    def routers(model):
        """Layer index -> router."""
        return {int(name.split(".layers.")[1].split(".")[0]): module for name, module in model.named_modules()
                if type(module).__name__ == "Qwen3MoeTopKRouter"}

    def run(self, inputs):
        """Every group of reference.safetensors. `inputs`: input_ids, labels [S, T]."""
        model, out = self.load(), {}
        self.forward_backward(model, inputs, out)
        self.padded(model, inputs, out)
        self.packed(model, inputs, out)
        if self.routers(model):
            self.balancing(model, inputs, out)
        self.greedy(model, inputs, out)
        self.full_training(inputs, out)
        self.lora(inputs, out)
        return out

    def forward_backward(self, model, inputs, out):
        hooks = [router.register_forward_hook(lambda _, __, o, layer=layer: out.update({
            f"forward.router_logits.{layer}": o[0].detach(), f"forward.router_weights.{layer}": o[1].detach(),
            f"forward.router_ids.{layer}": o[2].to(torch.int32)})) for layer, router in self.routers(model).items()]
        if self.full:
            hooks += [layer.register_forward_hook(lambda _, __, o, i=i: out.update({f"forward.hidden.{i}": o.detach()}))
                      for i, layer in enumerate(model.model.layers)]
        result = model(**inputs, use_cache=False)
        result.loss.backward()
        for hook in hooks:
            hook.remove()
        out["forward.logits"], out["forward.loss"] = result.logits, result.loss
        out["forward.nll"] = cross_entropy(
            result.logits[:, :-1].transpose(1, 2), inputs["labels"][:, 1:].long(), reduction="none")
        out |= {f"grad.{name}": g for name, g in hub_names({n: p.grad for n, p in model.named_parameters()}).items()}

    def padded(self, model, inputs, out, count=4):
        """The last `count` positions of the last row are padding; their logits are stored as zero."""
        mask, labels = torch.ones_like(inputs["input_ids"]), inputs["labels"].clone()
        mask[-1, -count:], labels[-1, -count:] = 0, -100
        batch = dict(input_ids=inputs["input_ids"], attention_mask=mask, labels=labels)
        with torch.no_grad():
            result = model(**batch, use_cache=False, output_router_logits=True) if self.routers(model) \
                else model(**batch, use_cache=False)
        out |= {"padded.attention_mask": mask.to(torch.int32), "padded.logits": result.logits * mask[..., None]}
        kept = result.logits[:, :-1].transpose(1, 2)
        out["padded.loss"] = cross_entropy(kept, labels[:, 1:])
        if self.routers(model):
            out["padded.aux_loss"] = result.aux_loss

    def packed(self, model, inputs, out):
        """Row 0 as two segments whose positions restart: must equal the segments run alone."""
        row, cut = inputs["input_ids"][:1], inputs["input_ids"].shape[1] * 5 // 12
        parts = [row[:, :cut], row[:, cut:]]
        positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
        with torch.no_grad():
            alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in parts], 1)
            joint = model(input_ids=row, position_ids=positions, use_cache=False).logits
        if (alone - joint).abs().max() > 1e-5:
            sys.exit("packed and separate runs differ in transformers")
        out |= {"packed.input_ids": row.to(torch.int32), "packed.position_ids": positions.to(torch.int32),
                "packed.logits": alone}

    def balancing(self, model, inputs, out):
        """Load-balancing loss over all layers and tokens; gradients of loss + coefficient x auxiliary."""
        model.zero_grad()
        result = model(**inputs, use_cache=False, output_router_logits=True)
        result.loss.backward()
        out["aux.loss"], out["aux.total_loss"] = result.aux_loss, result.loss
        out |= {f"aux.grad.model.layers.{layer}.mlp.gate.weight": router.weight.grad
                for layer, router in self.routers(model).items()}

    def greedy(self, model, inputs, out, prompt=6, count=16):
        ids = inputs["input_ids"][:1, :prompt]
        with torch.no_grad():
            ids = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
                                 eos_token_id=None, pad_token_id=0)
            logits = model(input_ids=ids, use_cache=False).logits[:, prompt - 1:-1]
        require_margin(logits, 1)
        if not torch.equal(logits.argmax(-1), ids[:, prompt:]):
            sys.exit("greedy decoding with and without a cache differ in transformers")
        out["greedy.ids"] = ids.to(torch.int32)

    @staticmethod
    def train(model, parameters, inputs):
        """Losses before each of STEPS AdamW steps and after the last, [STEPS + 1]."""
        optimizer, losses = torch.optim.AdamW(parameters, foreach=False, **OPTIMIZER), []
        for step in range(STEPS + 1):
            loss = model(**inputs, use_cache=False).loss
            losses.append(loss.item())
            if step < STEPS:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return torch.tensor(losses)

    def full_training(self, inputs, out):
        model = self.load().train()
        out["train.losses"] = self.train(model, list(model.parameters()), inputs)
        after = hub_names(dict(model.named_parameters()))
        last = f"model.layers.{self.case.config['num_hidden_layers'] - 1}"
        few = [name for name in after if name in ("model.norm.weight", f"{last}.mlp.gate.weight")
               or name.startswith(f"{last}.self_attn.") or name.startswith(f"{last}.mlp.experts.1.")]
        out |= {f"train.after.{name}": after[name] for name in (after if self.full else few)}

    def lora(self, inputs, out):
        """Adapter of random A and B: forward, gradients, STEPS steps. Writes the folder adapter/ when plain."""
        folder = self.folder / "adapter"
        if self.plain:
            self.make_adapter(folder)
        model = PeftModel.from_pretrained(self.load(), folder, is_trainable=True, autocast_adapter_dtype=False)
        trainable = {n.replace(".default.", "."): p for n, p in model.named_parameters() if p.requires_grad}
        if trainable.keys() != load_file(folder / "adapter_model.safetensors").keys():
            sys.exit(f"{folder}: PEFT does not load every tensor that it wrote")
        result = model(**inputs, use_cache=False)
        result.loss.backward()
        out["lora.logits"], out["lora.loss"] = result.logits, result.loss
        out |= {f"lora.grad.{name}": p.grad.clone() for name, p in trainable.items()}
        out["lora.losses"] = self.train(model, list(trainable.values()), inputs)
        out |= {f"lora.after.{name}": p for name, p in trainable.items()}

    def make_adapter(self, folder):
        model = get_peft_model(self.load(), LoraConfig(
            r=4, lora_alpha=8, target_modules=self.case.modules, target_parameters=self.case.parameters,
            use_rslora=self.case.rslora, task_type="CAUSAL_LM"), autocast_adapter_dtype=False)
        generator = torch.Generator().manual_seed(self.case.seed + 1000)
        with torch.no_grad():
            for name, p in sorted(model.named_parameters()):
                if p.requires_grad:
                    p.copy_(torch.randn(p.shape, generator=generator) * (0.1 if "lora_B" in name else p.shape[1] ** -0.5))
        model.peft_config["default"].base_model_name_or_path = ""
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        settings = json.loads((folder / "adapter_config.json").read_text())
        for key in ("target_modules", "target_parameters"):  # sets: their order differs from run to run
            settings[key] = settings[key] and sorted(settings[key])
        write_json(folder / "adapter_config.json", settings)


# ---- cases and their manifest ---------------------------------------------------------------------------------


def draw_case(case, folder, sequence, full):
    """Draws weights until no discrete choice of any run is close; returns (reference, judge's own noise, attempt)."""
    for attempt in range(500):
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
            reference, other = (Judge(folder, case, plain, full).run(inputs) for plain in (True, False))
        except TooClose:
            continue
        reference |= {f"input.{name}": tensor.to(torch.int32) for name, tensor in inputs.items()}
        return reference, noise(reference, other), attempt
    sys.exit(f"{folder.name}: no draw keeps every choice {MARGIN} apart")


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


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def versions():
    return {m.__name__: m.__version__.split("+")[0] for m in (torch, transformers, peft, safetensors)}


def make(names, out, sequence, overrides, full):
    manifest = {"made_by": "tools/goldens/model.py", "versions": versions(), "margin": MARGIN, "steps": STEPS,
                "optimizer": OPTIMIZER, "cases": {}}
    for name in names:
        case, folder = CASES[name], out / name
        case.config = case.config | overrides
        reference, own_noise, attempt = draw_case(case, folder, sequence, full)
        reference = {k: v.detach().contiguous().clone() for k, v in reference.items()}
        save_file(reference, folder / "reference.safetensors", metadata={"format": "pt"})
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        manifest["cases"][name] = {
            "seed": case.seed, "draw": attempt, "config_spelling": case.spelling, "noise": own_noise,
            "sha256": {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}}
        print(f"{name:18s} draw {attempt:3d}, {sum(p.stat().st_size for p in files) / 1e3:7.1f} kB, "
              f"loss {reference['forward.loss']:.5f}, lora {reference['lora.loss']:.5f}", flush=True)
    write_json(out / "MANIFEST.json", manifest)


def check(names, home):
    """Remakes the cases elsewhere and compares the bytes, then (another CPU rounds otherwise) the numbers."""
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        make(names, Path(scratch), 12, {}, False)
        for old in sorted(p for name in names for p in (home / name).rglob("*") if p.is_file()):
            new = Path(scratch) / old.relative_to(home)
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
    parser.add_argument("--sequence", type=int, default=12, help="tokens a sequence")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="override a key of config.json")
    parser.add_argument("--full", action="store_true", help="also hidden states and every weight after training")
    parser.add_argument("--any-version", action="store_true", help="do not insist on requirements.txt")
    options = parser.parse_args()
    pins = dict(line.strip().split("==") for line in Path(__file__).with_name("requirements.txt").open() if "==" in line)
    print(json.dumps(versions()))
    if pins != versions() and not options.any_version:
        sys.exit(f"these are not the pinned versions {pins}; install requirements.txt or pass --any-version")
    changed = options.case or options.set or options.full or options.sequence != 12
    if changed and not options.check and options.out.resolve() == HOME:
        sys.exit("a subset or a variant does not belong among the committed goldens: give it a folder with --out")
    overrides = {key: json.loads(value) for key, value in (item.split("=", 1) for item in options.set)}
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    names = options.case or list(CASES)
    if options.check:
        check(names, options.out)
    make(names, options.out, options.sequence, overrides, options.full)


if __name__ == "__main__":
    main()
