"""Speeds of the CUDA engine on the GPU that is there, as fractions of what its memory allows."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.engine.backend import DecoderConfig
from rwkv_chat.engine.cuda import CudaBackend
from rwkv_chat.engine.cudalib import CudaLibrary
from rwkv_chat.models.spec import ModelSpec
from tests.cuda.shapes import SIZES, make_weights

__all__ = ["Figure", "measure"]

_VALUE_SHARE = 0.1  # of the rows of ffn.value that are read, by how the weights are made
_DECODE = {
    ("0.1B", "bf16"): 0.25,
    ("0.4B", "bf16"): 0.45,
    ("1.5B", "bf16"): 0.75,
    ("7.2B", "bf16"): 0.85,
    ("7.2B", "q8"): 0.70,
    ("7.2B", "q4"): 0.55,
}
_BATCH_GAIN, _PREFILL_SHARE, _BRANCH_SECONDS = 6.0, 0.6, 1e-3


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, and what is wanted; `wanted` None where nothing is."""

    name: str
    value: float
    wanted: float | None
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether it is good enough."""
        if self.wanted is None:
            return None
        return self.value <= self.wanted if self.at_most else self.value >= self.wanted


def best_of(count: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs, after one that warms up."""
    work()
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def read_per_token(tensors: dict[str, np.ndarray]) -> int:
    """Bytes of weights that a step over few tokens reads."""
    total = 0.0
    for name, array in tensors.items():
        if "emb.weight" in name:
            continue
        total += array.nbytes * (_VALUE_SHARE if "ffn.value" in name else 1)
    return round(total)


def measure(
    library: CudaLibrary, size: str, weights: str, bandwidth: float, tokens: int, prompt: int
) -> list[Figure]:
    """The figures of one model: of `tokens` that are decoded, and a prompt of so many."""
    spec = SIZES[size].spec
    tensors = make_weights(spec, weights)
    backend = CudaBackend(library, library.gpus()[0], spec, tensors, 16)
    name = f"{size} {weights}"
    seconds = _decode_seconds(backend, spec, tokens)
    fraction = read_per_token(tensors) / seconds / bandwidth
    figures = [
        Figure(f"{name} decode, tokens/s", 1 / seconds, None),
        Figure(f"{name} decode, fraction of bandwidth", fraction, _DECODE.get((size, weights))),
    ]
    if size in ("tiny", "1.5B") and weights == "bf16":
        together = _batch_seconds(backend, tokens, 8)
        single = _batch_seconds(backend, tokens, 1)
        gain = 8 * single / together
        figures.append(Figure(f"{name} batch 8 over batch 1", gain, _BATCH_GAIN))
        figures += _prefill(backend, spec, name, prompt)
    if size in ("tiny", "7.2B"):
        copy = best_of(5, lambda: backend.model.copy_state(0, 1))
        figures.append(Figure(f"{name} branch, seconds", copy, _BRANCH_SECONDS, at_most=True))
    return figures


def _decode_seconds(backend: CudaBackend, spec: ModelSpec, tokens: int) -> float:
    words = [b"", *(b"x" for _ in range(spec.vocab_size - 1))]
    config = DecoderConfig(Sampling(), seed=1, stops=(), token_bytes=words, end=None)
    logits, state = backend.forward([1], None)
    decoder = backend.decoder(state, logits, config)
    return best_of(3, lambda: decoder.run(tokens, 1e9)) / tokens


def _batch_seconds(backend: CudaBackend, tokens: int, batch: int) -> float:
    slots = list(range(batch))
    model = backend.model

    def run() -> None:
        for _ in range(tokens):
            model.step(slots, slots)

    return best_of(3, run) / tokens


def _prefill(backend: CudaBackend, spec: ModelSpec, name: str, prompt: int) -> list[Figure]:
    ids = [i % spec.vocab_size for i in range(prompt)]
    seconds = best_of(2, lambda: backend.forward(ids, None))
    figures = [Figure(f"{name} prefill {prompt}, tokens/s", prompt / seconds, None)]
    other = _torch_seconds(spec, prompt)
    if other is not None:
        figures.append(Figure(f"{name} prefill over torch", other / seconds, _PREFILL_SHARE))
    return figures


def _torch_seconds(spec: ModelSpec, prompt: int) -> float | None:
    """How long torch's matrix products of the same shapes take; None without torch on the GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    d, f = spec.n_embd, spec.n_ffn
    x = torch.randn(prompt, d, device="cuda", dtype=torch.bfloat16)
    hidden = torch.randn(prompt, f, device="cuda", dtype=torch.bfloat16)
    square = torch.randn(d, d, device="cuda", dtype=torch.bfloat16)
    wide = torch.randn(d, f, device="cuda", dtype=torch.bfloat16)

    def run() -> None:
        for _ in range(spec.n_layer):
            for _ in range(4):
                x @ square
            x @ wide
            hidden @ wide.T
        torch.cuda.synchronize()

    return best_of(3, run)
