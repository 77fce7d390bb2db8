"""From a model file to a Model: open it, check that it fits, choose the backend."""

import os
from pathlib import Path

from rwkv_chat.chat.ports import Progress
from rwkv_chat.checkpoints.open import ConvertedModel, inspect, open_model
from rwkv_chat.engine import memory
from rwkv_chat.engine.backend import Backend
from rwkv_chat.engine.model import Model
from rwkv_chat.errors import TokenizerError, UsageError
from rwkv_chat.tokenizer.load import load as load_tokenizer
from rwkv_chat.tokenizer.vocabulary import Vocabulary

__all__ = ["BACKENDS", "load_model"]

BACKENDS = ("native", "reference")


def load_model(
    path: str | Path,
    weights: str = "f32",
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Model:
    """Open a model file of any supported format.

    Args:
        path: a file; the first time it is converted, and the converted copy is cached.
        weights: "f32" or "bf16".
        device: "cpu".
        threads: None for one per physical core.
        progress: told what is being done and how much of it is done.

    Raises:
        CheckpointError: the file cannot be used.
        MemoryLimitError: the model does not fit into memory.
        UsageError: an argument names something that does not exist.
    """
    if device != "cpu":
        raise UsageError(f'There is no device "{device}" in this build; use "cpu".')
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}.")
    found = inspect(Path(path))
    if weights not in found.weights_bytes:
        known = " or ".join(found.weights_bytes)
        raise UsageError(f"There is no weights type {weights!r}; use {known}.")
    need = found.weights_bytes[weights] + found.state_bytes
    memory.check(found.name, need, memory.available_bytes())
    converted = open_model(Path(path), weights, progress)
    tokenizer = _tokenizer(converted)
    backend = _backend(converted, threads)
    return Model(
        name=converted.name,
        backend=backend,
        tokenizer=tokenizer,
        template=converted.template,
        fingerprint=converted.fingerprint,
        weights=converted.weights,
    )


def _tokenizer(converted: ConvertedModel) -> Vocabulary:
    kind, rows, folder = converted.tokenizer, converted.spec.vocab_size, converted.source.parent
    if kind == "unknown":
        if not (folder / "vocab.txt").is_file():
            raise TokenizerError(
                f"The vocabulary of {converted.source} is not known: it has {rows} tokens, where "
                "World has 65536 and bytes 256. Put its vocabulary beside it as vocab.txt."
            )
        kind = "bundled"
    return load_tokenizer(kind, rows, folder)


def _backend(converted: ConvertedModel, threads: int | None) -> Backend:
    name = os.environ.get("RWKV_CHAT_BACKEND") or BACKENDS[0]
    if name not in BACKENDS:
        raise UsageError(
            f'RWKV_CHAT_BACKEND is "{name}"; it must be one of {", ".join(BACKENDS)}, or unset.'
        )
    if name == "reference":
        from rwkv_chat.engine.reference import ReferenceBackend

        return ReferenceBackend(converted.spec, converted.tensors)
    from rwkv_chat.engine.native import NativeBackend

    return NativeBackend(converted.spec, converted.tensors, threads)
