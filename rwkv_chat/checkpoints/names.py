"""Tensor names: the wrappers' prefixes, and what they tell of the architecture."""

from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path

from rwkv_chat.checkpoints.reading import TensorShape
from rwkv_chat.errors import NotAModelError, UnsupportedModelError
from rwkv_chat.models.generations import GENERATIONS

__all__ = ["find_generation", "strip_prefixes"]

_PREFIXES = ("module.", "_forward_module.", "base_model.", "model.", "_orig_mod.")
_PARTS = {
    "time_ww": ("attn.time_ww",),
    "ffnPre": ("ffnPre.",),
    "head_qk": ("head_q.", "head_k."),
}
_TRIALS = {
    "attention beside the mix (tiny_att)": ("tiny_q.", "tiny_att."),
    "embeddings of positions (pos_emb)": ("pos_emb",),
    "another channel mix (MishGLU)": ("ffn.aa.",),
}
_MIXED = (
    *("att.time_", "att.r_k", "attn.r_proj", "attn.x_bias"),
    *("self_attn.time_", "self_attn.r_k", "self_attn.w0"),
)
"""Parts of RWKV that stand beside attention, or under its name, in models made of both."""


def strip_prefixes(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Map each name without the prefixes of training wrappers to the name in the file.

    Raises:
        NotAModelError: two names become the same.
    """
    result: dict[str, str] = {}
    for name in names:
        short = name
        while short.startswith(_PREFIXES):
            short = short.split(".", 1)[1]
        if short in result:
            raise NotAModelError(
                f"{path} holds the tensor {short!a} twice, as {result[short]!a} and {name!a}. "
                "Remove one of them."
            )
        result[short] = name
    return result


def find_generation(path: Path, tensors: Mapping[str, TensorShape], *, normed: bool = False) -> str:
    """The generation, such as "5.2", that the names (without prefixes) are those of.

    `normed` tells that the embeddings have gone through ln0, and that it is not there any more.

    Raises:
        UnsupportedModelError: they are those of something else, which the sentence names.
        NotAModelError: they belong to no known model.
    """
    found = _architecture(tensors, normed=normed)
    known = "Give an RWKV model of one of the generations 1 to 7."
    if found is None:
        raise NotAModelError(f"{path} holds no RWKV model: its tensors have unknown names. {known}")
    if found in GENERATIONS:
        return found
    raise UnsupportedModelError(f"{path} is {found}, which is not supported. {known}")


def _architecture(tensors: Mapping[str, TensorShape], *, normed: bool) -> str | None:
    """A key of GENERATIONS, or what else it is in words."""

    def has(*parts: str) -> bool:
        return any(part in name for name in tensors for part in parts)

    if has("rosa", "ffn.enn"):
        return "a preview of RWKV-8"
    if has("lora_A", "lora_B"):
        return "an adapter (LoRA) and not a whole model"
    if has("self_attn.", "attn.q_proj", "c_attn.", "attention.query", "encoder.layer"):
        return "a hybrid of RWKV and a transformer" if has(*_MIXED) else "a transformer"
    if has("mixer.A_log"):
        return "a Mamba model"
    if has("attn.r_proj", "attention.receptance"):
        return "an RWKV model in the layout of the transformers library"
    if has("attn.query"):
        return "a transformer of the time of RWKV-1 (MHA)"
    if has("att.time_state") and not has("att.key.weight"):
        return "a start state (time_state) and not a whole model"
    base = _base(tensors, has, normed=normed)
    if base is None or base.startswith("a"):
        return base
    return _with_parts(base, has, normed=normed)


def _base(
    tensors: Mapping[str, TensorShape], has: Callable[..., bool], *, normed: bool
) -> str | None:
    """The generation but for the parts that only some of its models have, or what it is instead."""
    decay = next((t for name, t in tensors.items() if name.endswith("att.time_decay")), None)
    if has("attn.time_"):
        return "1"
    if has("att.r_k", "att.k_k"):
        return _variant_of_7(has("ffn.s_emb"), has("qkv."))
    if has("att.time_maa_x", "att.time_maa_k"):
        return "6" if has("att.gate.weight") else "an RWKV-6 model of a trial (x060a, b or c)"
    if has("att.ln_x"):
        return _variant_of_5(decay, gate=has("att.gate", "att.time_mix_g"))
    if has("time_mix_k"):
        if not normed and not has("ln0."):
            return "2.5"
        return "3" if decay is not None and len(decay.shape) == 2 else "4"
    return "2" if has("time_mix") else None


def _variant_of_7(deep_embedding: bool, attention: bool) -> str:
    if attention:
        return "an RWKV-7b model, whose attention (qkv) keeps more with every token"
    return "7a" if deep_embedding else "7"


def _variant_of_5(decay: TensorShape | None, *, gate: bool) -> str:
    if not gate:
        return "5.0"
    return "5.1" if decay is not None and prod(decay.shape[1:]) == 1 else "5.2"


def _with_parts(base: str, has: Callable[..., bool], *, normed: bool) -> str:
    """`base` with the parts that only some models have, as GENERATIONS names it or in words."""
    parts = [part for part, names in _PARTS.items() if has(*names)]
    parts += ["normed"] if normed else []
    trials = [trial for trial, names in _TRIALS.items() if has(*names)]
    found = "+".join((base, *parts))
    if found in GENERATIONS and not trials:
        return found
    return f"an RWKV-{base} model of a trial, with {' and '.join((*parts, *trials))}"
