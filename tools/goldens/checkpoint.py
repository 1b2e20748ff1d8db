"""The checkpoint of a golden: names, shapes and values as the hub holds them."""
import math

import torch
import transformers


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
            parts, values = (("gate", "up"), one.chunk(2)) if leaf == "gate_up_proj" else (("down",), (one,))
            out |= {f"{stem}.{expert}.{part}_proj.weight": value for part, value in zip(parts, values, strict=True)}
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}
