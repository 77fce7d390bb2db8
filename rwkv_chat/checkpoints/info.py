"""What a model file is, what it needs and how big it gets, from its headers alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rwkv_chat.checkpoints.convert import cached_path
from rwkv_chat.checkpoints.folder import find_files
from rwkv_chat.checkpoints.overrides import Overrides
from rwkv_chat.checkpoints.sizes import memory_bytes, state_bytes, weights_bytes
from rwkv_chat.checkpoints.source import Source, read_source
from rwkv_chat.models.generations import NATIVE_GENERATIONS
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.tokenizer.choose import find_file
from rwkv_chat.tokenizer.fit import GET_OTHER, get_20b
from rwkv_chat.weights import WEIGHTS

__all__ = ["FileInfo", "open"]

_AS_FOUND = Overrides()


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What the headers of a model file tell.

    Attributes:
        path: what was asked for: a file or a folder.
        name: what the model is called.
        format: that of `open_checkpoint` or "rwkv-chat" (converted), with what else is to be said
            of its form.
        spec: its generation and its shape.
        dtype: the widest type of its matrices (F32 where they are quantised).
        file_bytes: its size on disk.
        weights_bytes: the size of the weights in memory, for each weights type.
        memory_bytes: that of a loaded model with one state, for each weights type.
        state_bytes: the size of one state, which every turn has.
        tokenizer: one of `fit.KINDS`.
        vocabulary: the file that holds it, where it is not in the model or with the application.
        template: the name of the template that fits it.
        needs: what is missing and how to get it, in sentences; empty where it can be used.
        remarks: what its user should know of it.
        converted: the file of each weights type that opens at once.
        ignored: tensors that have no use.
        has_start: whether it begins with a start state that was merged into it.
    """

    path: Path
    name: str
    format: str
    spec: ModelSpec
    dtype: str
    file_bytes: int
    weights_bytes: Mapping[str, int]
    memory_bytes: Mapping[str, int]
    state_bytes: int
    tokenizer: str
    vocabulary: Path | None
    template: str
    needs: tuple[str, ...]
    remarks: tuple[str, ...]
    converted: Mapping[str, Path]
    ignored: tuple[str, ...]
    has_start: bool


def open(path: Path, overrides: Overrides = _AS_FOUND) -> FileInfo:  # noqa: A001
    """All that can be known of a model file of any supported format before it is loaded.

    Args:
        path: a file, or a folder in the form of Hugging Face.
        overrides: what is known of it better than its headers tell.

    Raises:
        CheckpointError: the file cannot be used. UsageError: it cannot be so.
    """
    source = read_source(path)
    spec = overrides.apply(source.spec)
    files = find_files(path)
    on_reference = spec.generation not in NATIVE_GENERATIONS
    beside = source.tokenizer in ("20b", "unknown")
    vocabulary = find_file(files.main, source.tokenizer) if beside else None
    needs = [get_20b() if source.tokenizer == "20b" else GET_OTHER]
    remarks = [spec.memory_limit] if spec.memory_limit else []
    if source.has_start:
        remarks.append("begins with the start state (time_state) that was merged into it")
    if on_reference:
        remarks.append("runs slowly, as there are no kernels for its generation")
    return FileInfo(
        path=path,
        name=source.name,
        format=source.format,
        spec=spec,
        dtype=source.dtype,
        file_bytes=sum(part.stat().st_size for part in files.parts),
        weights_bytes={w: weights_bytes(spec, w) for w in WEIGHTS},
        memory_bytes={w: memory_bytes(spec, w, on_reference=on_reference) for w in WEIGHTS},
        state_bytes=state_bytes(spec),
        tokenizer=source.tokenizer,
        vocabulary=vocabulary,
        template=source.template,
        needs=tuple(needs) if beside and vocabulary is None else (),
        remarks=tuple(remarks),
        converted=_conversions(path, source),
        ignored=source.ignored,
        has_start=source.has_start,
    )


def _conversions(path: Path, source: Source) -> dict[str, Path]:
    cached = {weights: cached_path(path, weights) for weights in WEIGHTS}
    found = {weights: file for weights, file in cached.items() if file.exists()}
    return {**found, source.weights: path} if source.is_converted else found
