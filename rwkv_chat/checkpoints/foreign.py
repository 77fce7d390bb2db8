"""Tensors that are no part of the generation a file seems to be of: then it is something else."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rwkv_chat.errors import UnsupportedModelError
from rwkv_chat.models.generations import GENERATIONS, Generation

__all__ = ["START", "check_known"]

START = "att.time_state"
"""What a start state that was merged into a model has in every layer."""

_LAYER = re.compile(r"blocks\.(0|[1-9]\d{0,3})\.(.+)")

_UNUSED = frozenset({"copy_mask"})
"""What training writes beside the weights."""
_FIRST_NORM = frozenset({"ln0.weight", "ln0.bias"})
"""Of no more use where the embeddings have gone through it."""

_GUESSES = {
    "RWKV-X, which has sparse attention beside RWKV-7": ("moba.", "sparse_attn"),
    "a mixture of experts": (".experts.", ".router."),
    "a model of more than text, such as pictures": ("vit.", "vision", "visual", "audio", "speech"),
    "a hybrid of RWKV and a transformer": (
        *("attn", "attention", "q_proj", ".c_q", "qkv"),
        *("ffn.gate.", "ffn.up.", "ffn.down.", "mlp."),
    ),
}


def check_known(path: Path, names: Iterable[str], generation: str) -> None:
    """Check that a model of `generation` has every one of `names`, if without use.

    Raises:
        UnsupportedModelError: it does not; with the first such name, and what the file may be.
    """
    parts = GENERATIONS[generation]
    outside, first, layer = _known(parts)
    foreign = []
    for name in names:
        found = _LAYER.fullmatch(name)
        known = outside if found is None else first if found[1] == "0" else layer
        if (name if found is None else found[2]) not in known:
            foreign.append(name)
    if foreign:
        raise UnsupportedModelError(
            f"{path} holds the tensor {foreign[0][:80]!a}, which RWKV-{parts.family} does not "
            f"have. {_guess(foreign)} Give an RWKV model of one of the generations 1 to 7."
        )


def _known(parts: Generation) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """What there may be outside the layers, and inside the first and the others."""
    outside = {rule.name for rule in (*parts.before, *parts.after)}
    layer = {name for rule in parts.layer for name in (rule.name, rule.logarithm)}
    if any(rule.name == "wkv" for rule in parts.state):
        layer.add(START)
    first = {rule.name for rule in parts.first}
    if parts.name.endswith("+normed"):
        first |= _FIRST_NORM
    return frozenset(outside | _UNUSED), frozenset(layer | first), frozenset(layer)


def _guess(foreign: Sequence[str]) -> str:
    for what, marks in _GUESSES.items():
        if any(mark in name for name in foreign for mark in marks):
            return f"It is probably {what}, which is not supported."
    return "It has parts of its own, which are not supported, or is damaged."
