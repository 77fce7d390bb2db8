"""From a model file to a Model: open it, check that it fits, choose the backend."""

import os
from pathlib import Path

from rwkv_chat import checkpoints
from rwkv_chat.chat.ports import Progress
from rwkv_chat.checkpoints.converted import ConvertedModel, open_model
from rwkv_chat.checkpoints.folder import find_files
from rwkv_chat.checkpoints.overrides import Overrides
from rwkv_chat.checkpoints.plain import plain
from rwkv_chat.checkpoints.sizes import memory_bytes
from rwkv_chat.devices import check_device
from rwkv_chat.engine import memory
from rwkv_chat.engine.backend import Backend
from rwkv_chat.engine.fallback import FallbackBackend
from rwkv_chat.engine.model import Model
from rwkv_chat.errors import UsageError
from rwkv_chat.models.generations import NATIVE_GENERATIONS
from rwkv_chat.tokenizer.choose import choose
from rwkv_chat.tokenizer.parse import parse
from rwkv_chat.tokenizer.vocabulary import Vocabulary

__all__ = ["BACKENDS", "load_model"]

BACKENDS = ("native", "reference")


def load_model(
    path: str | Path,
    weights: str = "f32",
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
    group_norm_eps: float | None = None,
    key_eps: float | None = None,
    generation: str | None = None,
    tokenizer: str | Path | None = None,
) -> Model:
    """Open a model file of any supported format.

    Generations that the compiled kernels do not know run on the reference, in float32; the name of
    the backend says so.

    Args:
        path: a file; the first time it is converted, and the converted copy is cached.
        weights: "f32", "bf16", "q8" or "q4".
        device: "cpu", "auto" (a GPU if the model fits, else the CPU), "cuda" or "cuda:N".
        threads: None for one per physical core.
        progress: told what is being done and how much of it is done.
        group_norm_eps: replaces that of the file, for models trained with another one than the
            official 64e-5.
        key_eps: replaces the one that RWKV-2 and 3 add to the sum of their keys: 1e-16 is usual
            for characters, 1e-8 (before June 2022: 1e-9) for the Pile.
        generation: such as "3", for a file whose tensors fit more than one: those of RWKV-3 and 4
            have the same names, and some converters drop what tells them apart.
        tokenizer: a vocabulary file to use instead of the one that is found; see
            `tokenizer.choose`.

    Raises:
        CheckpointError: the file cannot be used.
        TokenizerError: its vocabulary is not here, or another one was given.
        SnapshotError: the start state that was merged into it cannot be used.
        MemoryLimitError: the model does not fit into memory.
        UsageError: an argument names something that does not exist.
    """
    check_device(device)
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}.")
    found = checkpoints.open(Path(path), Overrides(group_norm_eps, key_eps, generation))
    if weights not in found.weights_bytes:
        known = " or ".join(found.weights_bytes)
        raise UsageError(f"There is no weights type {weights!r}; use {known}.")
    backend_name = _backend_name(found.spec.generation)
    need = memory_bytes(found.spec, weights, on_reference=backend_name == "reference")
    if device == "cpu":  # a GPU may hold what the memory of the machine cannot
        memory.check(found.name, need, memory.available_bytes())
    file = Path(tokenizer) if tokenizer else None
    rows = found.spec.vocab_size
    vocabulary = None
    if file is not None or found.tokenizer != "inside":  # before anything is converted
        vocabulary = choose(find_files(Path(path)).main, found.tokenizer, rows, file)
    converted = open_model(Path(path), weights, progress, group_norm_eps, key_eps, generation)
    if vocabulary is None:
        tokens = parse(converted.vocabulary.encode(), f"The vocabulary inside {path}")
        vocabulary = Vocabulary("inside", tokens, rows)
    backend = _on_gpu(device, converted, threads) if backend_name == "native" else None
    if backend is None:
        if device != "cpu":
            memory.check(found.name, need, memory.available_bytes())
        backend = _backend(backend_name, converted, threads)
    model = Model(
        name=converted.name,
        backend=backend,
        tokenizer=vocabulary,
        template=found.template,
        fingerprint=converted.fingerprint,
        weights=converted.weights,
    )
    return model.with_start(find_files(Path(path)).main) if found.has_start else model


def _backend_name(generation: str) -> str:
    """One of BACKENDS: what the environment asks for, or else the fastest for the generation."""
    name = os.environ.get("RWKV_CHAT_BACKEND")
    if name and name not in BACKENDS:
        raise UsageError(
            f'RWKV_CHAT_BACKEND is "{name}"; it must be one of {", ".join(BACKENDS)}, or unset.'
        )
    return name or ("native" if generation in NATIVE_GENERATIONS else "reference")


def _on_gpu(device: str, converted: ConvertedModel, threads: int | None) -> Backend | None:
    """On a GPU, with the CPU to fall back on; None where `device` does not mean one."""
    if device == "cpu":
        return None
    from rwkv_chat.engine.devices import open_on_gpu

    gpu = open_on_gpu(device, converted.name, converted.spec, converted.tensors)
    if gpu is None:
        return None
    return FallbackBackend(gpu, lambda: _backend("native", converted, threads))


def _backend(name: str, converted: ConvertedModel, threads: int | None) -> Backend:
    spec = converted.spec
    if name == "reference":
        from rwkv_chat.engine.reference import ReferenceBackend

        known = spec.generation in NATIVE_GENERATIONS
        remark = "" if known else f"as there are no kernels for RWKV-{spec.generation}"
        return ReferenceBackend(spec, plain(spec, converted.tensors), remark)
    from rwkv_chat.engine.native import NativeBackend

    return NativeBackend(spec, converted.tensors, threads)
