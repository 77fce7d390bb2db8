"""Models as the converter of web-rwkv writes them: some names and some transposes are its own.

The facts are those of `convert_safetensors.py` in the repository cryscan/web-rwkv. Files of RWKV-4
keep official names and shapes; in those of RWKV-7 the low-rank pairs are transposed, which
`detect` knows. The bonus of RWKV-5 and 6 is called time_first there, though it is no logarithm.
"""

import re
from collections.abc import Mapping

from rwkv_chat.checkpoints.derived import DerivedTensors
from rwkv_chat.checkpoints.reading import Checkpoint

__all__ = ["is_webrwkv", "restore_webrwkv"]

_BONUS = ".att.time_first"
_FIRST_HALVES = ("att.time_maa_w1", "att.time_decay_w1")
_SECOND_HALVES = ("att.time_maa_w2", "att.time_decay_w2")
_MIX = re.compile(r"(?<=\.time_)mix(?=_)")


def is_webrwkv(file: Checkpoint, names: Mapping[str, str], form: str) -> bool:
    """Whether a file of the format `form` is one of RWKV-5 or 6 that was converted so."""
    if "blocks.0.att.time_mix_w1" in names:
        return True
    bonus = names.get(f"blocks.0{_BONUS}")
    by_head = bonus is not None and len(file.tensors[bonus].shape) == 2
    return form == "safetensors" and by_head and "blocks.0.att.gate.weight" in names


def restore_webrwkv(file: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """The same model under official names and in official shapes.

    Args:
        file: the model.
        names: its names without the prefixes of wrappers, mapped to those in the file.
    """
    finch = "blocks.0.att.time_mix_w1" in names
    embedding = names.get("emb.weight")
    width = file.tensors[embedding].shape[-1] if embedding is not None else 0
    tensors = DerivedTensors(file)
    for short, stored in names.items():
        shape = file.tensors[stored].shape
        name = _MIX.sub("maa", short) if finch else short
        if name.endswith(_BONUS):
            name = name.removesuffix(_BONUS) + ".att.time_faaaa"
        # Files of before this was transposed have the width where it is officially.
        if (name.endswith(_FIRST_HALVES) and shape[-1] == width) or (
            name.endswith(_SECOND_HALVES) and len(shape) > 1 and shape[-2] == width
        ):
            tensors.turn(name, stored)
        else:
            tensors.keep(name, stored)
    return tensors.file()
