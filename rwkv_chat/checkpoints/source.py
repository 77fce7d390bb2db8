"""A verified model file, converted or not, with what can be told without reading its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rwkv_chat.chat import templates
from rwkv_chat.checkpoints.detect import detect
from rwkv_chat.checkpoints.folder import find_files
from rwkv_chat.checkpoints.forms import restore
from rwkv_chat.checkpoints.huggingface import with_config
from rwkv_chat.checkpoints.layout import converted_shapes, is_low_rank, is_vector, parse_spec
from rwkv_chat.checkpoints.reading import Checkpoint
from rwkv_chat.checkpoints.sharded import open_files
from rwkv_chat.errors import (
    MissingTensorError,
    NotAModelError,
    ShapeError,
    UnsupportedModelError,
)
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.tokenizer.fit import KINDS, kind_of
from rwkv_chat.weights import WEIGHTS

__all__ = ["FORMATS", "Source", "read_source"]

FORMATS = {
    "f32": "rwkv-chat 1",
    "bf16": "rwkv-chat 1",
    "q8": "rwkv-chat 2",
    "q4": "rwkv-chat 2",
}
"""What a converted file states, by its weights type: the number changes with the layout."""
_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Source:
    """An open model file whose tensors have been verified.

    `names` maps official names to those in the file. `weights` and `payload_sha256` are those
    of a converted file, and empty for all others. `dtype` is the widest type of the matrices.
    `vocabulary` is the text of the one inside the file where `tokenizer` is "inside", else "".
    `has_start` tells that the file is that of a start state, too.
    """

    checkpoint: Checkpoint
    format: str
    spec: ModelSpec
    names: Mapping[str, str]
    swapped: bool
    ignored: tuple[str, ...]
    name: str
    tokenizer: str
    template: str
    weights: str
    payload_sha256: str
    dtype: str
    vocabulary: str = ""
    has_start: bool = False

    @property
    def is_converted(self) -> bool:
        """Whether the file has the form that the kernels map."""
        return self.weights != ""

    def is_turned(self, name: str) -> bool:
        """Whether the file holds this tensor as the transpose of the official one already."""
        return self.is_converted or (self.swapped and is_low_rank(name))


def read_source(path: Path) -> Source:
    """Open a model file of any supported format and verify everything but the weights themselves.

    Raises:
        CheckpointError: one of its subclasses, with the file and what is wrong with it.
    """
    files = find_files(path)
    stored, kind = open_files(files)
    if "format" in stored.metadata and "rwkv-chat" in stored.metadata["format"]:
        return _converted(stored)
    form, checkpoint = restore(stored, kind)
    found = detect(checkpoint, normed=form == "rwkv package")
    spec = with_config(found.spec, files.config) if form == "fla" else found.spec
    whole = kind == "pth" and form in ("", "rwkv package") and len(files.parts) == 1
    if found.has_start and not whole:
        raise UnsupportedModelError(
            f"{stored.path} is a model with a start state (time_state) merged into it. Converters "
            "differ in which way its matrices lie: give the .pth file that it was made from."
        )
    told = checkpoint.metadata if kind == "gguf" else {}
    tokenizer = told.get("tokenizer", kind_of(spec.vocab_size))
    return Source(
        checkpoint=checkpoint,
        format=f"{kind}, {form} names" if form else kind,
        spec=spec,
        names=found.names,
        swapped=found.swapped,
        ignored=found.ignored,
        name=_printable(files.name),
        tokenizer=tokenizer,
        template=templates.fitting(tokenizer, files.name),
        weights="",
        payload_sha256="",
        dtype=_widest(checkpoint, found.names),
        vocabulary=told.get("vocabulary", ""),
        has_start=found.has_start,
    )


def _printable(name: str) -> str:
    """A name from outside as it may be shown, logged and stored."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name[:_MAX_NAME])


def _widest(checkpoint: Checkpoint, names: Mapping[str, str]) -> str:
    matrices = [stored for name, stored in names.items() if not is_vector(name)]
    types = {checkpoint.tensors[stored].dtype for stored in matrices}
    return next(dtype for dtype in ("F32", "F16", "BF16") if dtype in types)


def _converted(checkpoint: Checkpoint) -> Source:
    path, metadata = checkpoint.path, checkpoint.metadata
    if metadata["format"].startswith("rwkv-chat state"):
        raise NotAModelError(
            f"{path} is a saved state and no model. Begin a conversation with it: "
            "rwkv-chat ask --model MODEL --state FILE."
        )
    wanted = FORMATS.get(metadata.get("weights", ""), metadata["format"])
    if metadata["format"] != wanted or wanted not in FORMATS.values():
        raise UnsupportedModelError(
            f"{path} was converted by another version of rwkv-chat. Give the original model."
        )
    keys = {"weights", "spec", "name", "tokenizer", "template", "fingerprint"}
    if metadata.get("tokenizer") == "inside":
        keys.add("vocabulary")
    if not keys <= metadata.keys():
        missing = ", ".join(sorted(keys - metadata.keys()))
        raise NotAModelError(f"{path} is damaged: its metadata lacks {missing}.")
    allowed = {"weights": WEIGHTS, "tokenizer": KINDS, "template": templates.names()}
    for key, values in allowed.items():
        if metadata[key] not in values:
            raise NotAModelError(f"{path} is damaged: its {key} is {metadata[key][:40]!a}.")
    if not re.fullmatch("[0-9a-f]{64}", metadata["fingerprint"]):
        raise NotAModelError(f"{path} is damaged: its fingerprint is not a sha256.")
    spec = parse_spec(path, metadata["spec"])
    _check_converted(checkpoint, spec, metadata["weights"])
    return Source(
        checkpoint=checkpoint,
        format="rwkv-chat",
        spec=spec,
        names={name: name for name in checkpoint.tensors},
        swapped=False,
        ignored=(),
        name=_printable(metadata["name"]),
        tokenizer=metadata["tokenizer"],
        template=metadata["template"],
        weights=metadata["weights"],
        payload_sha256=metadata["fingerprint"],
        dtype={"f32": "F32", "bf16": "BF16", "q8": "I8", "q4": "U8"}[metadata["weights"]],
        vocabulary=metadata.get("vocabulary", ""),
    )


def _check_converted(checkpoint: Checkpoint, spec: ModelSpec, weights: str) -> None:
    path, expected = checkpoint.path, converted_shapes(spec, weights)
    for name, (dtype, shape) in expected.items():
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            raise MissingTensorError(
                f"{path} lacks the tensor {name}. The file is not complete: get it again."
            )
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            raise ShapeError(
                f"{path}: tensor {name} is {tensor.dtype} {list(tensor.shape)} and should be "
                f"{dtype} {list(shape)}. The file does not fit together: get it again."
            )
    extra = checkpoint.tensors.keys() - expected.keys()
    if extra:
        raise NotAModelError(f"{path} is damaged: it holds the unknown tensor {min(extra)!a}.")
