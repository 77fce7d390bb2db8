"""Tensor names: the wrappers' prefixes, and what they tell of the architecture."""

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

from rwkv_chat.checkpoints.reading import TensorShape
from rwkv_chat.errors import NotAModelError, UnsupportedModelError
from rwkv_chat.models.generations import GENERATIONS

__all__ = ["find_generation", "strip_prefixes"]

_PREFIXES = ("module.", "_forward_module.", "base_model.", "model.", "_orig_mod.")


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


def find_generation(path: Path, tensors: Mapping[str, TensorShape]) -> str:
    """The generation, such as "5.2", that the names (without prefixes) are those of.

    Raises:
        UnsupportedModelError: they are those of something else, which the sentence names.
        NotAModelError: they belong to no known model.
    """
    found = _architecture(tensors)
    known = "Give an RWKV model of generation 4, 5, 6 or 7."
    if found is None:
        raise NotAModelError(f"{path} holds no RWKV model: its tensors have unknown names. {known}")
    if found in GENERATIONS:
        return found
    raise UnsupportedModelError(f"{path} is {found}, which is not supported. {known}")


def _architecture(tensors: Mapping[str, TensorShape]) -> str | None:
    """A key of GENERATIONS, or what else it is in words."""

    def has(*parts: str) -> bool:
        return any(part in name for name in tensors for part in parts)

    if has("lora_A", "lora_B"):
        return "an adapter (LoRA) and not a whole model"
    if has("self_attn.", "c_attn.", "attention.query", "encoder.layer"):
        return "a transformer"
    if has("mixer.A_log"):
        return "a Mamba model"
    if has("attn.r_proj", "attention.receptance"):
        return "an RWKV model in the layout of the transformers library"
    if has("attn.time_w"):
        return "an RWKV-1 model"
    if has("att.r_k"):
        return _variant_of_7(has("ffn.s_emb"), has("qkv."), has("ffn.enn", "rosa"))
    if has("att.time_state"):
        whole = has("att.key.weight")
        return f"a start state (time_state) and {'also' if whole else 'not'} a whole model"
    if has("att.time_maa_x", "att.time_maa_k"):
        return "6" if has("att.gate.weight") else "an RWKV-6 model of a trial (x060a, b or c)"
    if has("att.ln_x"):
        return _variant_of_5(tensors, gate=has("att.gate", "att.time_mix_g"))
    if has("att.time_mix"):
        trial = has("head_q.", "head_k.", "ffnPre.", "tiny_q", "pos_emb", "ffn.aa.")
        return _old(tensors, normed=has("ln0."), keyed=has("att.time_mix_k"), trial=trial)
    return None


def _variant_of_7(deep_embedding: bool, attention: bool, later: bool) -> str:
    if later:
        return "an RWKV-8 model"
    if attention:
        return "an RWKV-7b model"
    return "7a" if deep_embedding else "7"


def _variant_of_5(tensors: Mapping[str, TensorShape], *, gate: bool) -> str:
    if not gate:
        return "5.0"
    decay = tensors.get("blocks.0.att.time_decay")
    return "5.1" if decay is not None and prod(decay.shape[1:]) == 1 else "5.2"


def _old(tensors: Mapping[str, TensorShape], *, normed: bool, keyed: bool, trial: bool) -> str:
    if not normed:
        return "an RWKV-2.5 model" if keyed else "an RWKV-2 model"
    decay = tensors.get("blocks.0.att.time_decay")
    if decay is not None and len(decay.shape) == 2:
        return "an RWKV-3 model"
    return "an RWKV-4 model with parts of a trial (head_qk, ffnPre or others)" if trial else "4"
