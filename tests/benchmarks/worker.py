"""One engine with one model, which does what it reads on stdin: see `tests.benchmarks.peers`.

`python -m tests.benchmarks.worker ENGINE FILE THREADS`; the engine is `llama.cpp`, `rwkv`, or a
weights type of rwkv-chat. Lines are `decode N`, `prefill N` and `batch B N`; each is answered
by the median of seconds for one step, or the seconds for the whole prompt. After a decode
rwkv-chat also answers `bytes_per_step`.
"""

import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

__all__ = ["main"]


class Engine(Protocol):
    """What is measured; tokens are any ids."""

    def decode(self, steps: int) -> float: ...
    def prefill(self, tokens: int) -> float: ...
    def batch(self, size: int, steps: int) -> float: ...


def _median(step: Callable[[int], object], steps: int) -> float:
    seconds = []
    for i in range(steps + 4):
        begun = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[4:])


def _once(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Ours:
    """rwkv-chat; a step includes the choice of its tokens."""

    def __init__(self, file: Path, weights: str, threads: int) -> None:
        from rwkv_chat.chat.sampling import Sampling
        from rwkv_chat.engine.backend import DecoderConfig
        from rwkv_chat.engine.select import load_model

        self.model = load_model(file, weights, threads=threads)
        tokenizer = self.model.tokenizer
        self.config = DecoderConfig(
            Sampling(), 0, (), tokenizer.token_bytes, tokenizer.exempt, end=None
        )

    def decode(self, steps: int) -> float:
        backend = self.model.backend
        logits, state = backend.forward([5, 6, 7], None)
        decoder = backend.decoder(state, logits, self.config)
        return _median(lambda _: decoder.run(1, 1e9), steps)

    def prefill(self, tokens: int) -> float:
        return _once(lambda: self.model.backend.forward(list(range(100, 100 + tokens)), None))

    def bytes_per_step(self) -> float:
        """What a step of one sequence reads of the weights."""
        backend = self.model.backend
        return backend.weight_bytes_per_step(backend.ffn_zero_fraction())

    def batch(self, size: int, steps: int) -> float:
        backend = self.model.backend
        starts = [backend.forward([10 + i], None) for i in range(size)]
        decoders = [backend.decoder(state, logits, self.config) for logits, state in starts]
        return _median(lambda _: backend.run_together(decoders, [1] * size, 1e9), steps)


class LlamaCpp:
    """llama-cpp-python, through the C interface."""

    def __init__(self, file: Path, threads: int) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        self.silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silence, ctypes.c_void_p(0))
        model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_threads = settings.n_threads_batch = threads
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = 4096, 512, 512, 16
        self.context = llama_cpp.llama_init_from_model(model, settings)

    def _read(self, ids: list[int]) -> None:
        tokens = (self.api.llama_token * len(ids))(*ids)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, len(ids))):
            raise SystemExit("llama.cpp fails.")
        self.api.llama_get_logits(self.context)

    def _forget(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def decode(self, steps: int) -> float:
        self._forget()
        self._read([5, 6, 7])
        return _median(lambda i: self._read([i + 10]), steps)

    def prefill(self, tokens: int) -> float:
        self._forget()
        return _once(lambda: self._read(list(range(100, 100 + tokens))))

    def batch(self, size: int, steps: int) -> float:
        self._forget()
        batch: Any = self.api.llama_batch_init(size, 0, 1)

        def step(position: int) -> None:
            batch.n_tokens = size
            for i in range(size):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = 10 + i + position, position, 1
                batch.seq_id[i][0], batch.logits[i] = i, 1
            if self.api.llama_decode(self.context, batch):
                raise SystemExit("llama.cpp fails.")
            self.api.llama_get_logits(self.context)

        return _median(step, steps)


class Official:
    """PyPI `rwkv` on torch in bfloat16; it has no batches."""

    def __init__(self, file: Path, threads: int) -> None:
        os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
        import torch
        from rwkv.model import RWKV

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = RWKV(model=str(file.with_suffix("")), strategy="cpu bf16")

    def decode(self, steps: int) -> float:
        _, state = self.model.forward([5, 6, 7], None)

        def step(i: int) -> None:
            nonlocal state
            _, state = self.model.forward([i + 10], state)

        return _median(step, steps)

    def prefill(self, tokens: int) -> float:
        return _once(lambda: self.model.forward(list(range(100, 100 + tokens)), None))

    def batch(self, size: int, steps: int) -> float:
        raise SystemExit("PyPI rwkv has no batches.")


def _open(engine: str, file: Path, threads: int) -> Engine:
    if engine == "llama.cpp":
        return LlamaCpp(file, threads)
    return Official(file, threads) if engine == "rwkv" else Ours(file, engine, threads)


def main() -> None:
    """The command."""
    answers, sys.stdout = sys.stdout, sys.stderr  # some engines print
    engine = _open(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        kind, *numbers = line.split()
        print(getattr(engine, kind)(*map(int, numbers)), file=answers, flush=True)


if __name__ == "__main__":
    main()
