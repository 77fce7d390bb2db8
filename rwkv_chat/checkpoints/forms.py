"""The forms in which converters store RWKV models, each told by its tensors and undone."""

import re

from rwkv_chat.checkpoints.huggingface import (
    is_fla,
    is_transformers,
    restore_fla,
    restore_transformers,
)
from rwkv_chat.checkpoints.names import strip_prefixes
from rwkv_chat.checkpoints.reading import Checkpoint
from rwkv_chat.checkpoints.rwkvpip import is_converted, restore_converted
from rwkv_chat.checkpoints.webrwkv import is_webrwkv, restore_webrwkv
from rwkv_chat.errors import UnsupportedModelError

__all__ = ["restore"]

_STATE = re.compile(r"blocks\.\d+\.att\.time_state")
_ADAPTER = re.compile(r".+\.(lora_[AB]|lora\.[01]|bone|disha)(\.default)?(\.weight)?")


def restore(file: Checkpoint, kind: str) -> tuple[str, Checkpoint]:
    """The same model under official names, and whose names it has: "fla" or others, "" official.

    `kind` is the name of the file's format.

    Raises:
        CheckpointError: the form cannot be undone, or its tensors contradict each other.
    """
    names = strip_prefixes(file.path, file.tensors)
    if is_converted(file):
        return "rwkv package", restore_converted(file, names)
    if is_fla(names):
        if any(".attn.q_proj." in name for name in names):
            return "", file  # a hybrid, which is refused by the names it has
        return "fla", restore_fla(file, names)
    if is_transformers(names):
        return "transformers", restore_transformers(file, names)
    if is_webrwkv(file, names, kind):
        return "web-rwkv", restore_webrwkv(file, names)
    if names and all(_STATE.fullmatch(name) for name in names):
        if kind != "pth":
            raise UnsupportedModelError(
                f"{file.path} is a trained start state and no model, and does not tell which way "
                "its matrices lie: converters to safetensors differ. The .pth file that it was "
                "made from can be given to --state."
            )
        raise UnsupportedModelError(
            f"{file.path} is a trained start state and no model. Begin a conversation with it: "
            "rwkv-chat ask --model MODEL --state FILE."
        )
    if any(_ADAPTER.fullmatch(name) for name in names):
        raise UnsupportedModelError(
            f"{file.path} is an adapter and no model. Merge it into its model: "
            "rwkv-chat models convert MODEL --lora FILE."
        )
    return "", file
