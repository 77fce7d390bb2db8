"""The slow truth: the torch model and the numpy sampler behind the contract of every backend."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rwkv_chat.engine.backend import Decoder, DecoderConfig, run_in_turn
from rwkv_chat.engine.ids import check_batch, check_ids
from rwkv_chat.engine.sampling import Penalties, sample
from rwkv_chat.errors import UsageError
from rwkv_chat.models.base import Reference
from rwkv_chat.models.rwkv1 import Rwkv1
from rwkv_chat.models.rwkv2 import Rwkv2, Rwkv25
from rwkv_chat.models.rwkv3 import Rwkv3
from rwkv_chat.models.rwkv4 import Rwkv4
from rwkv_chat.models.rwkv5 import Rwkv5
from rwkv_chat.models.rwkv6 import Rwkv6
from rwkv_chat.models.rwkv7 import Rwkv7, Rwkv7a
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import F32, StateLayout

__all__ = ["ReferenceBackend"]

_MODELS: Mapping[str, type[Reference]] = {
    "1": Rwkv1,
    "2": Rwkv2,
    "2.5": Rwkv25,
    "3": Rwkv3,
    "4": Rwkv4,
    "5.0": Rwkv5,
    "5.1": Rwkv5,
    "5.2": Rwkv5,
    "6": Rwkv6,
    "7": Rwkv7,
    "7a": Rwkv7a,
}


class ReferenceBackend:
    """A model in float32 on the CPU, one id at a time, so that no split of the ids can matter.

    `remark` is added to the name that people read.
    """

    def __init__(
        self, spec: ModelSpec, tensors: Mapping[str, npt.NDArray[Any]], remark: str = ""
    ) -> None:
        self._model = _MODELS[spec.parts.family](spec, tensors)
        self._remark = remark

    @property
    def name(self) -> str:
        """For people."""
        return f"reference, torch, {self._remark}" if self._remark else "reference, torch"

    @property
    def spec(self) -> ModelSpec:
        """The shape of the model."""
        return self._model.spec

    @property
    def layout(self) -> StateLayout:
        """The order of the state."""
        return self._model.layout

    def forward(self, ids: Sequence[int], state: F32 | None) -> tuple[F32, F32]:
        """Feed `ids` after `state`; see Backend."""
        checked = check_ids(ids, self.spec.vocab_size)
        if not checked:
            raise UsageError("There are no token ids to feed.")
        current = self._unpack(state)
        for token in checked:
            logits, current = self._model.forward([token], current)
        return logits[-1].numpy().copy(), current.numpy().copy()

    def forward_batch(
        self, ids: Sequence[int], states: Sequence[F32 | None]
    ) -> tuple[F32, list[F32]]:
        """Feed one id to each state; see Backend."""
        checked = check_batch(ids, states, self.spec.vocab_size)
        if not checked:
            raise UsageError("There are no token ids to feed.")
        results = [self.forward([i], state) for i, state in zip(checked, states, strict=True)]
        return np.stack([logits for logits, _ in results]), [new for _, new in results]

    def decoder(self, state: F32, logits: F32, config: DecoderConfig) -> "ReferenceDecoder":
        """Start or continue an answer; see Backend."""
        return ReferenceDecoder(self, state, logits, config)

    def run_together(
        self, decoders: Sequence[Decoder], limits: Sequence[int], seconds: float
    ) -> list[tuple[list[int], str]]:
        """One after the other; see Backend."""
        return run_in_turn(decoders, limits, seconds)

    def _unpack(self, state: F32 | None) -> torch.Tensor:
        if state is None:
            return self._model.new_state()
        if state.dtype != np.float32 or state.shape != (self.layout.size,):
            raise UsageError(
                f"This state has {state.size} numbers of type {state.dtype}; "
                f"the model needs {self.layout.size} of type float32."
            )
        current = torch.tensor(state)
        if not self._model.accepts(current):
            raise UsageError("This state remembers token ids that the model does not have.")
        return current


class ReferenceDecoder:
    """One answer; see Decoder."""

    def __init__(
        self, backend: ReferenceBackend, state: F32, logits: F32, config: DecoderConfig
    ) -> None:
        if len(config.token_bytes) > backend.spec.vocab_size:
            raise UsageError(
                f"The tokenizer has {len(config.token_bytes)} tokens and the model only "
                f"{backend.spec.vocab_size}."
            )
        self._backend = backend
        self._state = state.copy()
        self._logits = logits.copy()
        self._config = config
        self._penalties = Penalties(config.sampling, config.exempt, config.generated)
        self._drawn = len(config.generated)
        self._text = b"".join(config.token_bytes[token] for token in config.generated)
        self._silent = np.ones(backend.spec.vocab_size, dtype=bool)
        self._silent[: len(config.token_bytes)] = [not text for text in config.token_bytes]
        if config.end is not None:  # it can be chosen, though it stands for no text
            self._silent[config.end] = False
        self._cancelled = threading.Event()

    @property
    def state(self) -> F32:
        """A copy of the state after the last id."""
        return self._state.copy()

    @property
    def logits(self) -> F32:
        """A copy of the logits after the last id."""
        return self._logits.copy()

    def cancel(self) -> None:
        """End the current run and every later one; from any thread."""
        self._cancelled.set()

    def run(self, max_tokens: int, seconds: float) -> tuple[list[int], str]:
        """Generate until something ends it; see Decoder."""
        deadline = time.monotonic() + seconds
        ids: list[int] = []
        if not self._is_finite():
            return ids, "non_finite"
        while len(ids) < max_tokens and not self._cancelled.is_set():
            token = self._next()
            if token == self._config.end:
                return ids, "end"
            known = len(self._text)
            self._feed(token)
            ids.append(token)
            if not self._is_finite():
                return ids, "non_finite"
            if self._has_stop(known):
                return ids, "stop"
            if time.monotonic() >= deadline:
                break
        return ids, "cancelled" if self._cancelled.is_set() else "running"

    def _has_stop(self, known: int) -> bool:
        """Whether a stop string ends behind the first `known` bytes."""
        return any(
            self._text.find(stop, max(0, known - len(stop) + 1)) >= 0 for stop in self._config.stops
        )

    def _is_finite(self) -> bool:
        return bool(np.isfinite(self._logits).all())

    def _next(self) -> int:
        settings = self._config.sampling
        logits = self._penalties.apply(self._logits)
        logits[self._silent] = -np.inf
        return sample(
            logits,
            settings.temperature,
            settings.top_p,
            settings.top_k,
            settings.min_p,
            self._config.seed,
            self._drawn,
        )

    def _feed(self, token: int) -> None:
        self._logits, self._state = self._backend.forward([token], self._state)
        self._penalties.count(token)
        self._drawn += 1
        self._text += self._config.token_bytes[token]
