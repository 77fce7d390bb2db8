"""From the path of any model file to weights that the kernels can use, converting when needed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rwkv_chat.checkpoints import safetensors
from rwkv_chat.checkpoints.convert import Progress, cached_path, convert
from rwkv_chat.checkpoints.folder import find_files
from rwkv_chat.checkpoints.layout import render_spec
from rwkv_chat.checkpoints.overrides import Overrides
from rwkv_chat.checkpoints.source import Source, read_source
from rwkv_chat.errors import CheckpointError, TruncatedError, UsageError
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.weights import WEIGHTS

__all__ = ["ConvertedModel", "open_model", "verify"]

_VERIFIED_SIZE = 32 << 20


@dataclass(frozen=True, slots=True, eq=False)
class ConvertedModel:
    """Weights ready for use: read-only arrays mapped from a converted file.

    `fingerprint` names what they compute: it covers the weights and the spec.
    `tensors` are in the converted layout, float32, (bfloat16) uint16, (q8) int8 or (q4) uint8.
    `source` is the file (or the index of several) that was asked for, `path` the one that is
    mapped; they differ when it had to be converted.
    `vocabulary` is the text of the one inside the file where `tokenizer` is "inside", else "".
    """

    spec: ModelSpec
    tensors: Mapping[str, npt.NDArray[Any]]
    fingerprint: str
    weights: str
    name: str
    tokenizer: str
    template: str
    path: Path
    source: Path
    vocabulary: str = ""


def open_model(
    path: Path,
    weights: str | None = None,
    progress: Progress | None = None,
    group_norm_eps: float | None = None,
    key_eps: float | None = None,
    generation: str | None = None,
) -> ConvertedModel:
    """Open a model file of any supported format.

    A converted file of the same weights type is mapped as it is. Every other one is converted once
    and then mapped from the cache, until its size or its time changes.

    Args:
        path: the file.
        weights: "f32", "bf16", "q8" or "q4"; None takes that of a converted file, and otherwise the
            smallest type that holds the weights of the file exactly.
        progress: told how far a conversion is; it cancels by raising.
        group_norm_eps: replaces that of the file, for models that were trained with another one
            (such as 1e-5) than the official 64e-5: no file says so. The fingerprint then differs.
        key_eps: likewise the epsilon of RWKV-2 and 3: 1e-16, 1e-9 and 1e-8 have been used.
        generation: opens the model as this one where its tensors fit more than the one that was
            found: RWKV-3 and 4 have the same ones, and only their shape tells them apart.

    Raises:
        CheckpointError: the file cannot be used. UsageError: there is no such weights type, or the
            model cannot have such an epsilon or be of that generation.
    """
    overrides = Overrides(group_norm_eps, key_eps, generation)
    if weights is not None and weights not in WEIGHTS:
        raise UsageError(f'There is no weights type "{weights}"; use {" or ".join(WEIGHTS)}.')
    if weights is not None:
        cached = _open_cached(path, weights, overrides)
        if cached is not None:
            return cached
    source = read_source(path)
    if source.is_converted and weights in (None, source.weights):
        return _map(source, path, overrides)
    overrides.apply(source.spec)  # refuse before converting
    if weights is None:
        weights = "bf16" if source.dtype == "BF16" else "f32"
        cached = _open_cached(path, weights, overrides)
        if cached is not None:
            return cached
    return _map(read_source(convert(path, weights, progress)), path, overrides)


def _open_cached(path: Path, weights: str, overrides: Overrides) -> ConvertedModel | None:
    cached = cached_path(path, weights)
    if not cached.exists():
        return None
    try:
        return _map(read_source(cached), path, overrides)
    except CheckpointError:  # damaged: the original is there to convert again
        return None


def _map(source: Source, asked: Path, overrides: Overrides) -> ConvertedModel:
    spec = overrides.apply(source.spec)
    file = source.checkpoint
    if not isinstance(file, safetensors.TensorFile):
        raise TypeError("only a safetensors file can be converted")
    if len(file.payload) <= _VERIFIED_SIZE:
        _verify_payload(file)
    return ConvertedModel(
        spec=spec,
        tensors={name: file.array(name) for name in file.tensors},
        fingerprint=_fingerprint(source.payload_sha256, spec),
        weights=source.weights,
        name=source.name,
        tokenizer=source.tokenizer,
        template=source.template,
        path=file.path,
        source=find_files(asked).main,
        vocabulary=source.vocabulary,
    )


def _fingerprint(payload_sha256: str, spec: ModelSpec) -> str:
    """Equal weights under another spec, such as another epsilon, are another model."""
    return hashlib.sha256((payload_sha256 + render_spec(spec)).encode()).hexdigest()


def verify(path: Path) -> None:
    """Read a whole converted file and compare its weights with the sha256 it states.

    Small files are verified whenever they are opened; this is for the others.

    Raises:
        CheckpointError: they differ, or it is not a usable file.
    """
    file = read_source(path).checkpoint
    if isinstance(file, safetensors.TensorFile) and "fingerprint" in file.metadata:
        _verify_payload(file)


def _verify_payload(file: safetensors.TensorFile) -> None:
    if file.payload_sha256() != file.metadata["fingerprint"]:
        raise TruncatedError(
            f"{file.path} is damaged: its weights do not match their fingerprint. "
            "Convert or download the model again."
        )
