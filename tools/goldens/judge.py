"""The judge of the goldens: what transformers and PEFT compute with one checkpoint, in float32, and how far off they are in bfloat16."""
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from checkpoint import hub_names
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

STEPS = 5
OPTIMIZER = dict(lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.5)  # a decay that five steps can show


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


class TooClose(Exception):
    """A discrete choice that rounding could flip: the weights are drawn again."""


def require_margin(scores, k, least):
    """Throws unless the k-th largest of each row of `scores` [*, n] leads the next by `least`."""
    top = scores.detach().float().topk(k + 1, -1)[0]
    if (top[..., k - 1] - top[..., k]).min() < least:
        raise TooClose


def distance(found, wanted):
    """The largest difference over the largest magnitude of `wanted`."""
    apart, size = (found.float() - wanted).abs().max().item(), wanted.abs().max().item()
    return apart and apart / size


def norm_distance(found, wanted):
    """The norm of the difference over that of `wanted`."""
    apart, size = (found.float() - wanted).norm().item(), wanted.norm().item()
    return apart and apart / size


@dataclass
class Judge:
    """Runs one checkpoint in transformers, with the plain or the fast implementations."""

    folder: Path
    case: Any  # config, seed, modules, parameters, rslora
    plain: bool = True
    full: bool = False
    margin: float = 1e-3
    router_margin: float = 1e-3  # the same of routers, in what is also judged in bf16
    dtype: torch.dtype = torch.float32

    def load(self):
        kinds = dict(attn_implementation="eager" if self.plain else "sdpa")
        if "num_experts" in self.case.config:
            kinds["experts_implementation"] = "eager" if self.plain else "batched_mm"
        model, report = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=self.dtype, output_loading_info=True, **kinds)
        wrong = [x for k in ("missing_keys", "unexpected_keys", "mismatched_keys") for x in report[k]]
        if wrong:
            sys.exit(f"{self.folder}: transformers reads the checkpoint differently: {wrong}")
        for module in self.routers(model).values():
            module.register_forward_hook(lambda m, _, out: require_margin(out[0], m.top_k, self.least))
        return model.eval()

    @staticmethod
    def routers(model):
        """Layer index -> router."""
        return {int(name.split(".layers.")[1].split(".")[0]): module for name, module in model.named_modules()
                if type(module).__name__ == "Qwen3MoeTopKRouter"}

    def run(self, inputs):
        """Every group of reference.safetensors. `inputs`: input_ids, labels [S, T]."""
        self.least = self.router_margin
        model, out = self.load(), {}
        self.forward_backward(model, inputs, out)
        self.packed(model, inputs, out)
        if self.routers(model):
            self.balancing(model, inputs, out)
        self.least = self.margin
        self.padded(model, inputs, out)
        self.greedy(model, inputs, out)
        self.full_training(inputs, out)
        self.lora(inputs, out)
        return out

    def half_distances(self, inputs, reference):
        """How far bfloat16 is from `reference`, this judge's float32: as `martlet doctor --goldens` measures it.
        The adapter's factors stay float32, which is how PEFT trains them; they are multiplied under autocast."""
        self.dtype, self.least = torch.bfloat16, 0
        model, found = self.load(), {}
        self.forward_backward(model, inputs, found)
        found["packed.logits"], _ = self.pack(model, reference["packed.input_ids"].long(), reference["packed.position_ids"].long())
        if self.routers(model):
            self.balancing(model, inputs, found)
        self.adapted(inputs, found)
        groups = {"logits": "forward.logits", "loss": "forward.loss", "packed": "packed.logits", "adapted logits": "lora.logits",
                  "adapted loss": "lora.loss", "adapter's gradients": "lora.grad.", "all gradients": "grad.",
                  "auxiliary loss": "aux.loss", "routers' gradients": "aux.grad."}
        return {group: max((norm_distance if "grad" in key else distance)(found[name], reference[name])
                           for name in found if name.startswith(key))
                for group, key in groups.items() if any(name.startswith(key) for name in found)}

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

    @staticmethod
    def pack(model, row, positions):
        """Logits of the two segments of a row, run alone and as one row whose positions restart."""
        cut = int((positions[0] == 0).nonzero()[1])
        with torch.no_grad():
            alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in (row[:, :cut], row[:, cut:])], 1)
            return alone, model(input_ids=row, position_ids=positions, use_cache=False).logits

    def packed(self, model, inputs, out):
        """Row 0 as two segments: must equal the segments run alone."""
        row, cut = inputs["input_ids"][:1], inputs["input_ids"].shape[1] * 5 // 12
        positions = torch.cat([torch.arange(cut), torch.arange(row.shape[1] - cut)])[None]
        alone, joint = self.pack(model, row, positions)
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
        require_margin(logits, 1, self.margin)
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
        if self.plain:
            self.make_adapter(self.folder / "adapter")
        self.least = self.router_margin
        model, trainable = self.adapted(inputs, out)
        self.least = self.margin
        out["lora.losses"] = self.train(model, list(trainable.values()), inputs)
        out |= {f"lora.after.{name}": p for name, p in trainable.items()}

    def adapted(self, inputs, out):
        """The model with the adapter, forward and backward; (model, what is trained under the adapter file's names)."""
        folder = self.folder / "adapter"
        model = PeftModel.from_pretrained(
            self.load(), folder, is_trainable=True, autocast_adapter_dtype=self.dtype != torch.float32)
        trainable = {n.replace(".default.", "."): p for n, p in model.named_parameters() if p.requires_grad}
        if trainable.keys() != load_file(folder / "adapter_model.safetensors").keys():
            sys.exit(f"{folder}: PEFT does not load every tensor that it wrote")
        # As trainers do: factors in float32, and multiplied in bfloat16.
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            result = model(**inputs, use_cache=False)
        result.loss.backward()
        out["lora.logits"], out["lora.loss"] = result.logits, result.loss
        out |= {f"lora.grad.{name}": p.grad.clone() for name, p in trainable.items()}
        return model, trainable

    def make_adapter(self, folder):
        model = get_peft_model(self.load(), LoraConfig(
            r=self.case.rank, lora_alpha=self.case.alpha or 2 * self.case.rank, target_modules=self.case.modules, target_parameters=self.case.parameters,
            use_rslora=self.case.rslora, task_type="CAUSAL_LM"), autocast_adapter_dtype=False)
        generator = torch.Generator().manual_seed(self.case.seed + 1000)
        with torch.no_grad():
            for name, p in sorted(model.named_parameters()):
                if p.requires_grad:
                    scale = 0.1 if "lora_B" in name else p.shape[1] ** -0.5
                    p.copy_(torch.randn(p.shape, generator=generator) * scale)
        model.peft_config["default"].base_model_name_or_path = ""
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        settings = json.loads((folder / "adapter_config.json").read_text())
        for key in ("target_modules", "target_parameters"):  # sets: their order differs from run to run
            settings[key] = settings[key] and sorted(settings[key])
        write_json(folder / "adapter_config.json", settings)
