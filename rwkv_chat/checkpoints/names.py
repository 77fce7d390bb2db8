"""Tensor names: the wrappers' prefixes, and what they tell of the architecture."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from rwkv_chat.checkpoints.reading import TensorShape
from rwkv_chat.errors import NotAModelError, UnsupportedModelError

__all__ = ["require_rwkv7", "strip_prefixes"]

_PREFIXES = ("module.", "_forward_module.", "model.", "_orig_mod.")


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


def require_rwkv7(path: Path, tensors: Mapping[str, TensorShape]) -> None:
    """Check that the names (without prefixes) are those of an RWKV-7 model.

    Raises:
        UnsupportedModelError: they are those of something else, which the sentence names.
        NotAModelError: they belong to no known model.
    """
    found = _architecture(tensors)
    if found == "RWKV-7":
        return
    if found is None:
        raise NotAModelError(
            f"{path} holds no RWKV model: its tensors have unknown names. Give an RWKV-7 model."
        )
    raise UnsupportedModelError(f"{path} is {found}, which is not supported. Give an RWKV-7 model.")


def _architecture(tensors: Mapping[str, TensorShape]) -> str | None:
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
        return "a start state (time_state) and not a whole model"
    if has("att.time_maa_x", "att.time_maa_k"):
        return "an RWKV-6 model"
    if has("att.ln_x"):
        return _variant_of_5(tensors, gate=has("att.gate", "att.time_mix_g"))
    if has("att.time_mix"):
        return _old(tensors, normed=has("ln0."), keyed=has("att.time_mix_k"))
    return None


def _variant_of_7(deep_embedding: bool, attention: bool, later: bool) -> str:
    if later:
        return "an RWKV-8 model"
    if attention:
        return "an RWKV-7b model"
    if deep_embedding:
        return "an RWKV-7a model"
    return "RWKV-7"


def _variant_of_5(tensors: Mapping[str, TensorShape], *, gate: bool) -> str:
    decay = tensors.get("blocks.0.att.time_decay")
    if not gate:
        return "an RWKV-5.0 model"
    scalar = decay is not None and (len(decay.shape) == 1 or decay.shape[1:] == (1, 1))
    return "an RWKV-5.1 model" if scalar else "an RWKV-5.2 model"


def _old(tensors: Mapping[str, TensorShape], *, normed: bool, keyed: bool) -> str:
    if not normed:
        return "an RWKV-2.5 model" if keyed else "an RWKV-2 model"
    decay = tensors.get("blocks.0.att.time_decay")
    return "an RWKV-3 model" if decay is not None and len(decay.shape) == 2 else "an RWKV-4 model"
