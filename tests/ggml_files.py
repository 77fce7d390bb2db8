"""Writers of GGUF files and of those of rwkv.cpp, from official weights."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from rwkv_chat.models.spec import ModelSpec

__all__ = ["READ_ONLY", "Kind", "escaped", "quantised", "write_gguf", "write_rwkvcpp"]

Weights = Mapping[str, torch.Tensor]

_RWKVCPP_CODES = {Kind.F32: 0, Kind.F16: 1, Kind.Q4_0: 2, Kind.Q4_1: 3}
_RWKVCPP_CODES |= {Kind.Q5_0: 7, Kind.Q5_1: 8, Kind.Q8_0: 9, Kind.Q4_K: 13, Kind.Q6_K: 15}

READ_ONLY = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ4_NL: (0,),
    Kind.IQ4_XS: (0,),
}
"""The types that the package `gguf` reads and cannot write, and where a block has its scales."""


def quantised(array: np.ndarray, kind: Kind) -> np.ndarray:
    """The bytes of a float32 array in a number type, uint8 [..., bytes of a row]."""
    if kind not in (
        Kind.Q2_K,
        Kind.Q3_K,
        Kind.Q4_K,
        Kind.Q5_K,
        Kind.Q6_K,
        Kind.IQ4_NL,
        Kind.IQ4_XS,
    ):
        return gguf.quants.quantize(array, kind).view(np.uint8)
    # Random blocks, whose scales are small numbers.
    values, size = gguf.GGML_QUANT_SIZES[kind]
    dice = np.random.default_rng(array.size)
    blocks = dice.integers(0, 256, (array.size // values, size), np.uint8)
    for at in READ_ONLY[kind]:
        scale = np.float16(0.002) * dice.random((len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8)
    return blocks.reshape(*array.shape[:-1], -1)


def escaped(tokens: Iterable[bytes]) -> list[bytes]:
    """Tokens as the converter of llama.cpp writes them."""
    return [repr(token)[2:-1].encode() for token in tokens]


def write_gguf(
    path: Path,
    weights: Weights,
    spec: ModelSpec,
    kind: Kind = Kind.F32,
    *,
    tokens: Sequence[bytes] | None = None,
    rescale: int = 0,
    fused: bool = True,
) -> Path:
    """An RWKV-6 or RWKV-7 model as the converter of llama.cpp writes it.

    Args:
        kind: of the matrices that llama.cpp would quantise.
        tokens: of ids from 1.
        rescale: RWKV-6: halve the activations after so many layers.
        fused: RWKV-6: the shares of all mixes in one tensor, as newer files have them.
    """
    finch = spec.generation == "6"
    writer = gguf.GGUFWriter(path, "rwkv6" if finch else "rwkv7")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(spec.n_embd)
    writer.add_block_count(spec.n_layer)
    writer.add_feed_forward_length(spec.n_ffn)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(spec.head_size)
    writer.add_head_count(0)
    if finch:
        writer.add_time_mix_extra_dim(spec.rank_mix)
        writer.add_time_decay_extra_dim(spec.rank_w)
        writer.add_rescale_every_n_layers(rescale)
    else:
        writer.add_decay_lora_rank(spec.rank_w)
        writer.add_iclr_lora_rank(spec.rank_a)
        writer.add_value_residual_mix_lora_rank(spec.rank_v)
        writer.add_gate_lora_rank(spec.rank_g)
    if tokens is not None:
        padding = [f"[PAD{i}]".encode() for i in range(1 + len(tokens), spec.vocab_size)]
        writer.add_tokenizer_model("rwkv")
        writer.add_token_list([b"<s>", *escaped(tokens), *padding])
        writer.add_token_types([3, *[1] * len(tokens), *[5] * len(padding)])
    tensors = _finch(weights, spec, rescale, fused) if finch else _goose(weights, spec)
    for name, array in tensors.items():
        if array.ndim != 2 or kind == Kind.F32 or name.endswith(("first.weight", "_lerp_x.weight")):
            writer.add_tensor(name, array)
        elif array.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
            writer.add_tensor(name, array.astype(np.float16))
        else:
            writer.add_tensor(name, quantised(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _arrays(weights: Weights) -> dict[str, np.ndarray]:
    return {name: tensor.float().squeeze().numpy() for name, tensor in weights.items()}


def _shared(get: Mapping[str, np.ndarray], n_layer: int) -> dict[str, np.ndarray]:
    """What both generations have, under the names of GGUF."""
    result = {"token_embd.weight": get["emb.weight"], "output.weight": get["head.weight"]}
    norms = {"token_embd_norm": "blocks.0.ln0", "output_norm": "ln_out"}
    for layer in range(n_layer):
        ours, block = f"blocks.{layer}", f"blk.{layer}"
        norms |= {f"{block}.attn_norm": f"{ours}.ln1", f"{block}.attn_norm_2": f"{ours}.ln2"}
        norms[f"{block}.time_mix_ln"] = f"{ours}.att.ln_x"
        for theirs, part in (("time_mix", "att"), ("channel_mix", "ffn")):
            for matrix in ("receptance", "key", "value", "output", "gate"):
                name = f"{ours}.{part}.{matrix}.weight"
                if name in get:
                    result[f"{block}.{theirs}_{matrix}.weight"] = get[name]
    for theirs, name in norms.items():
        for side in ("weight", "bias"):
            result[f"{theirs}.{side}"] = get[f"{name}.{side}"]
    return result


def _goose(weights: Weights, spec: ModelSpec) -> dict[str, np.ndarray]:
    get = _arrays(weights)
    result = _shared(get, spec.n_layer)
    for layer in range(spec.n_layer):
        att, block = f"blocks.{layer}.att.", f"blk.{layer}."
        mixes = np.stack([get[f"{att}x_{part}"] for part in "rwkvag"])
        result[f"{block}time_mix_lerp_fused.weight"] = mixes.reshape(6, 1, 1, -1)
        result[f"{block}channel_mix_lerp_k.weight"] = get[f"blocks.{layer}.ffn.x_k"]
        for part in "wavg":
            source = "a" if part == "v" and layer == 0 else part  # llama.cpp wants something there
            for side in "12":
                result[f"{block}time_mix_{part}{side}.weight"] = get[
                    f"{att}{source}{side}"
                ].T.copy()
            if part != "g":
                result[f"{block}time_mix_{part}0.weight"] = get[f"{att}{source}0"]
        for name in ("k_k", "k_a", "r_k"):
            result[f"{block}time_mix_{name}.weight"] = get[f"{att}{name}"].reshape(-1)
    return result


def _finch(weights: Weights, spec: ModelSpec, rescale: int, fused: bool) -> dict[str, np.ndarray]:
    get = _arrays(weights)
    result = _shared(get, spec.n_layer)
    for layer in range(spec.n_layer):
        att, block = f"blocks.{layer}.att.", f"blk.{layer}."
        for part in "kr":
            share = get[f"blocks.{layer}.ffn.time_maa_{part}"]
            result[f"{block}channel_mix_lerp_{part}.weight"] = share
        mixes = {part: get[f"{att}time_maa_{part}"] for part in "xwkvrg"}
        result[f"{block}time_mix_lerp_x.weight"] = mixes.pop("x")
        if fused:
            stacked = np.stack(list(mixes.values())).reshape(5, 1, 1, -1)
            result[f"{block}time_mix_lerp_fused.weight"] = stacked
        else:
            for part, share in mixes.items():
                result[f"{block}time_mix_lerp_{part}.weight"] = share
        for theirs, name in (("w", "time_maa_w"), ("decay_w", "time_decay_w")):
            for side in "12":
                turned = get[f"{att}{name}{side}"].swapaxes(-1, -2).copy()
                result[f"{block}time_mix_{theirs}{side}.weight"] = turned
        first = get[f"{att}time_faaaa"].reshape(-1, spec.head_size)
        result[f"{block}time_mix_first.weight"] = first
        result[f"{block}time_mix_decay.weight"] = get[f"{att}time_decay"]
        if rescale:
            for name in (f"{block}time_mix_output.weight", f"{block}channel_mix_value.weight"):
                result[name] = result[name] / np.float32(2 ** (layer // rescale))
    return result


def write_rwkvcpp(
    path: Path, weights: Weights, kind: Kind = Kind.F32, *, version: int = 101
) -> Path:
    """A model of generation 4 to 7 as the converter of rwkv.cpp, and its quantiser, write it."""
    tensors = _computed(weights)
    rows, width = tensors["emb.weight"].shape
    layers = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    code = _RWKVCPP_CODES[kind]
    parts = [b"fmgg", struct.pack("<5i", version, rows, width, layers, code)]
    for name, array in tensors.items():
        small = array.ndim != 2 or ".time_" in name or ".k_" in name or ".r_k" in name
        whole = "emb." in name or "head." in name
        block = gguf.GGML_QUANT_SIZES[kind][0]
        stays = small or kind == Kind.F32 or array.shape[-1] % block or (whole and block > 1)
        used = Kind.F32 if stays else kind
        parts.append(struct.pack("<3i", array.ndim, len(name), _RWKVCPP_CODES[used]))
        parts.append(struct.pack(f"<{array.ndim}i", *array.shape[::-1]))
        parts += [name.encode(), quantised(array, used).tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def _computed(weights: Weights) -> dict[str, np.ndarray]:
    """What the converter of rwkv.cpp computes in advance, in float32."""
    arrays = {name: tensor.float().numpy() for name, tensor in weights.items()}
    goose, finch = "blocks.0.att.r_k" in arrays, "blocks.0.att.time_maa_x" in arrays
    heads, gated = "blocks.0.att.ln_x.weight" in arrays, "blocks.0.att.gate.weight" in arrays
    result: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        last = name.rsplit(".", 1)[-1]
        if last.startswith("time_"):
            array = array.squeeze()
        if goose:
            if ".att.x_" in name:
                fused = name.replace(last, "x_rwkvag")
                array = array.reshape(1, 1, -1)
                before = result.pop(fused, array[:0])
                name, array = fused, np.concatenate([before, array])
            elif last[0] in "wavg" and last[1:] in ("1", "2"):
                array = array.T
        elif finch:
            n_head = arrays["blocks.0.att.time_faaaa"].shape[0]
            if last == "time_faaaa":
                array = array[..., None]
            elif last == "time_decay":
                array = array.reshape(n_head, -1, 1)
            elif last in ("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"):
                array = array.swapaxes(-1, -2)
        elif heads:
            if last == "time_decay":
                array = np.exp(-np.exp(array))
                array = array[..., None] if gated else array.reshape(-1, 1, 1)
            elif last == "time_first":
                array = np.exp(array).reshape(-1, 1, 1)
            elif last == "time_faaaa":
                array = array[..., None]
        elif last == "time_decay":
            array = -np.exp(array)
        result[name] = np.ascontiguousarray(array)
    return result
