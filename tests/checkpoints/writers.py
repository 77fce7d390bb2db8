"""Independent writers of other forms: official tensors renamed and reshaped as converters do it."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

__all__ = ["as_fla6", "as_fla7", "as_rwkvpip", "as_transformers", "as_webrwkv", "write_folder"]

Weights = dict[str, torch.Tensor]

_FLA_MODEL = {
    "emb.weight": "model.embeddings.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}
_FLA_NORMS = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
_FLA_PROJ = {"receptance": "r", "key": "k", "value": "v", "output": "o", "gate": "g"}


def as_fla7(weights: Mapping[str, torch.Tensor], *, fused: bool) -> Weights:
    """Official RWKV-7 tensors as convert_from_rwkv7.py names them."""
    result: Weights = {}
    rows: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in weights.items():
        if name in _FLA_MODEL:
            result[_FLA_MODEL[name]] = tensor
            continue
        _, layer, module, *rest = name.split(".")
        block = f"model.layers.{layer}."
        if module in _FLA_NORMS:
            result[f"{block}{_FLA_NORMS[module]}.{rest[0]}"] = tensor
        elif module == "ffn":
            result[f"{block}ffn.{'.'.join(rest)}"] = tensor
        elif rest[0].startswith("x_"):
            if fused:
                rows.setdefault(block, {})[rest[0][2]] = tensor.reshape(-1)
            else:
                result[f"{block}attn.{rest[0]}"] = tensor.reshape(1, 1, -1)
        elif rest[0] == "ln_x":
            result[f"{block}attn.g_norm.{rest[1]}"] = tensor
        elif rest[0] in _FLA_PROJ:
            result[f"{block}attn.{_FLA_PROJ[rest[0]]}_proj.weight"] = tensor
        elif rest[0][-1] in "012":
            pair, kind = rest[0]
            lora = f"{block}attn.{pair}_lora.lora."
            if kind == "0":
                result[f"{lora}2.bias"] = tensor.reshape(-1)
            else:
                result[f"{lora}{'0' if kind == '1' else '2'}.weight"] = tensor.t().contiguous()
        else:
            result[f"{block}attn.{rest[0]}"] = tensor
    for block, parts in rows.items():
        result[f"{block}attn.x_x"] = torch.stack([parts[letter] for letter in "rwkvag"])
    return result


def as_fla6(weights: Mapping[str, torch.Tensor]) -> Weights:
    """Official RWKV-6 tensors as convert_from_rwkv6.py names them."""
    result: Weights = {theirs: weights[ours] for ours, theirs in _FLA_MODEL.items()}
    n_layer = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks."))
    for layer in range(n_layer):
        old, new = f"blocks.{layer}.", f"model.layers.{layer}."
        for ours, theirs in _FLA_NORMS.items():
            for kind in ("weight", "bias"):
                if f"{old}{ours}.{kind}" in weights:
                    result[f"{new}{theirs}.{kind}"] = weights[f"{old}{ours}.{kind}"]
        att = {n: weights[f"{old}att.{n}"] for n in ("time_maa_w1", "time_maa_w2")}
        width = att["time_maa_w1"].shape[0]
        w, k, v, r, g = att["time_maa_w1"].view(width, 5, -1).unbind(-2)
        first = torch.cat((r, w, k, v, g), -1).t()
        result[f"{new}attn.x_proj.0.linear.weight"] = first.contiguous()
        w, k, v, r, g = att["time_maa_w2"].unbind(0)
        result[f"{new}attn.x_proj.2.weight"] = torch.cat((r, w, k, v, g), 0).t().contiguous()
        result[f"{new}attn.x_proj.0.mu"] = weights[f"{old}att.time_maa_x"].reshape(-1)
        result[f"{new}attn.x_bias"] = torch.stack(
            [weights[f"{old}att.time_maa_{letter}"].reshape(-1) for letter in "rwkvg"]
        )
        lora = f"{new}attn.w_proj.linear.lora."
        result[f"{lora}0.weight"] = weights[f"{old}att.time_decay_w1"].t().contiguous()
        result[f"{lora}2.weight"] = weights[f"{old}att.time_decay_w2"].t().contiguous()
        result[f"{lora}2.bias"] = weights[f"{old}att.time_decay"].reshape(-1)
        for ours, theirs in _FLA_PROJ.items():
            inner = "" if theirs == "o" else ".linear"
            result[f"{new}attn.{theirs}_proj{inner}.weight"] = weights[f"{old}att.{ours}.weight"]
        result[f"{new}attn.bonus"] = weights[f"{old}att.time_faaaa"]
        for kind in ("weight", "bias"):
            result[f"{new}attn.g_norm.{kind}"] = weights[f"{old}att.ln_x.{kind}"]
        result[f"{new}ffn.key.linear.weight"] = weights[f"{old}ffn.key.weight"]
        result[f"{new}ffn.key.mu"] = weights[f"{old}ffn.time_maa_k"].reshape(-1)
        result[f"{new}ffn.value.weight"] = weights[f"{old}ffn.value.weight"]
        result[f"{new}ffn.receptance.linear.weight"] = weights[f"{old}ffn.receptance.weight"]
        result[f"{new}ffn.receptance.mu"] = weights[f"{old}ffn.time_maa_r"].reshape(-1)
    return result


def as_transformers(weights: Mapping[str, torch.Tensor]) -> Weights:
    """Official tensors of RWKV-4 to 6 as the transformers library names them."""
    result = {}
    for name, tensor in weights.items():
        if name != "head.weight":
            name = "rwkv." + name.replace("emb.", "embeddings.")
        for ours, theirs in {"att": "attention", "ffn": "feed_forward", "ln0": "pre_ln"}.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        for long in ("key", "value", "receptance", "gate"):
            if name.endswith(f".time_mix_{long[0]}"):
                name = name.removesuffix(long[0]) + long
        result[name] = tensor
    return result


def as_webrwkv(weights: Mapping[str, torch.Tensor], *, half: bool = True) -> Weights:
    """Official tensors as the converter of web-rwkv writes them; of RWKV-7 as its loader wants."""
    turned = [f"time_mix_w{n}" for n in "12"] + [f"time_decay_w{n}" for n in "12"]
    turned += [f"att.{letter}{n}" for letter in "wavg" for n in "12"]
    result = {}
    for name, tensor in weights.items():
        new = name.replace("time_faaaa", "time_first").replace("time_maa", "time_mix").lower()
        if new.endswith(tuple(turned)):
            tensor = tensor.transpose(-2, -1)
        result[new] = (tensor.half() if half else tensor).contiguous()
    return result


def write_folder(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    config: Mapping[str, object] | None = None,
    *,
    shards: int = 1,
    suffix: str = "safetensors",
) -> Path:
    """A folder in the form of Hugging Face, with several files when `shards` is more than one."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save(dict(weights), folder / f"{stem}.{suffix}")
        return folder
    places = {}
    for part in range(shards):
        names = list(weights)[part::shards]
        file = f"{stem}-{part + 1:05}-of-{shards:05}.{suffix}"
        save({name: weights[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def as_rwkvpip(weights: Mapping[str, torch.Tensor], every: int = 0) -> dict[str, object]:
    """Tensors of RWKV-4 to 6 with normed embeddings as the rwkv package saves them.

    Layers are scaled after `every` of them, 0 for none.
    """
    five = "blocks.0.att.time_mix_k" in weights and "blocks.0.att.ln_x.weight" in weights
    result: dict[str, object] = {
        "_strategy": "cpu fp32",
        "_rescale_layer": every,
        "_version": "0.7",
    }
    for name, tensor in weights.items():
        module, _, last = name.rpartition(".")
        if every and name.endswith(("att.output.weight", "ffn.value.weight")):
            tensor = tensor / 2 ** (int(name.split(".")[1]) // every)
        if last == "weight" and tensor.ndim == 2 and name != "emb.weight":
            tensor = tensor.T
        elif last == "time_decay" and five:
            tensor = torch.exp(-torch.exp(tensor)).reshape(len(tensor), -1, 1)
        elif last == "time_decay" and "blocks.0.att.ln_x.weight" not in weights:
            tensor = -torch.exp(tensor)
        elif last == "time_faaaa":
            name, tensor = f"{module}.time_first", tensor.reshape(len(tensor), -1, 1)
        result[name] = tensor
    return result
