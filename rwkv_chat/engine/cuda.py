"""The CUDA kernels as a backend: weights and states on a GPU, one id per token over the bus."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_chat.engine.backend import Decoder, DecoderConfig, run_in_turn
from rwkv_chat.engine.cudadecoder import CudaDecoder, Words
from rwkv_chat.engine.cudalib import CudaLibrary, CudaModel, Gpu
from rwkv_chat.engine.ids import check_batch, check_ids
from rwkv_chat.engine.slots import Slots
from rwkv_chat.errors import UsageError
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import F32, StateLayout

__all__ = ["CudaBackend", "slots_for"]

_FEWEST_SLOTS, _MOST_SLOTS = 4, 66
_SHARE = 8  # of the free memory, one part may hold states


def slots_for(spec: ModelSpec, gpu: Gpu) -> int:
    """How many states to keep on a GPU: as many as it can step at once, and some to branch from."""
    each = 4 * StateLayout.of(spec).size
    return max(_FEWEST_SLOTS, min(_MOST_SLOTS, gpu.free // _SHARE // each))


class CudaBackend:
    """A loaded model on a GPU; see `engine.backend.Backend`."""

    def __init__(
        self,
        library: CudaLibrary,
        gpu: Gpu,
        spec: ModelSpec,
        tensors: Mapping[str, npt.NDArray[Any]],
        slots: int | None = None,
    ) -> None:
        """Copy the weights to the GPU.

        Args:
            library: the kernels.
            gpu: where.
            spec: sizes of the model.
            tensors: the converted form, its matrices in bf16, q8 or q4. The embedding is read from
                there as long as the model lives.
            slots: how many states it holds; None for as many as `slots_for` finds fit.

        Raises:
            MemoryLimitError: it does not fit, with figures.
            EngineError: there are no kernels for it, or the GPU cannot be used.
        """
        count = slots or slots_for(spec, gpu)
        self._model = CudaModel(library, gpu.index, spec, tensors, count)
        self._slots = Slots(count)
        self._most = count
        self._lock = threading.RLock()
        self._name = f"cuda:{gpu.index} {gpu.name}"
        self._spec = spec
        self._layout = StateLayout.of(spec)
        self._start = self._layout.new()
        self._words: tuple[Sequence[bytes], Words] | None = None

    @property
    def name(self) -> str:
        """Such as "cuda:0 NVIDIA H100"."""
        return self._name

    @property
    def spec(self) -> ModelSpec:
        """The sizes of the model."""
        return self._spec

    @property
    def layout(self) -> StateLayout:
        """The parts of the state."""
        return self._layout

    def forward(self, ids: Sequence[int], state: F32 | None) -> tuple[F32, F32]:
        """Feed `ids` after `state`; see `engine.backend.Backend.forward`."""
        checked = check_ids(ids, self._spec.vocab_size)
        if not checked:
            raise UsageError("forward needs at least one token id.")
        logits, states = self._feed([checked], [state])
        return logits[0], states[0]

    def forward_batch(
        self, ids: Sequence[int], states: Sequence[F32 | None]
    ) -> tuple[F32, list[F32]]:
        """Feed one id to each of B states; see `engine.backend.Backend.forward_batch`."""
        checked = check_batch(ids, states, self._spec.vocab_size)
        if not checked:
            raise UsageError("forward_batch needs at least one token id.")
        logits, new = [], []
        for at in range(0, len(checked), self._most):
            part = slice(at, at + self._most)
            some, made = self._feed([[each] for each in checked[part]], states[part])
            logits.append(some)
            new += made
        return np.concatenate(logits), new

    def decoder(self, state: F32, logits: F32, config: DecoderConfig) -> CudaDecoder:
        """Start or continue an answer; see `engine.backend.Backend.decoder`."""
        if logits.shape != (self._spec.vocab_size,) or logits.dtype != np.float32:
            raise UsageError(f"logits must be float32 [{self._spec.vocab_size}].")
        check_ids(config.exempt, self._spec.vocab_size)
        check_ids(config.generated, self._spec.vocab_size)
        return CudaDecoder(self, state, logits, config, self._words_of(config.token_bytes))

    def run_together(
        self, decoders: Sequence[Decoder], limits: Sequence[int], seconds: float
    ) -> list[tuple[list[int], str]]:
        """One after the other; see `engine.backend.Backend.run_together`."""
        return run_in_turn(decoders, limits, seconds)

    @property
    def model(self) -> CudaModel:
        """For the decoders, within `lock`."""
        return self._model

    @property
    def slots(self) -> Slots:
        """For the decoders, within `lock`."""
        return self._slots

    @property
    def lock(self) -> threading.RLock:
        """Held by who uses the device."""
        return self._lock

    def place(self, state: F32 | None) -> int:
        """A slot in use that holds `state`: copied on the device where it still is there."""
        data = self._checked(state)
        with self._lock:
            known = self._slots.find(data)
            slot = self._slots.take()
            try:
                if known is None:
                    self._model.write_state(slot, data)
                elif known != slot:  # else it was taken from this very state
                    self._model.copy_state(known, slot)
            except BaseException:
                self._slots.give_back(slot)
                raise
            return slot

    def fetch(self, slot: int) -> F32:
        """A copy of the state in a slot, read-only."""
        state = np.empty(self._layout.size, np.float32)
        with self._lock:
            self._model.read_state(slot, state)
        state.setflags(write=False)
        return state

    def _feed(
        self, runs: Sequence[Sequence[int]], states: Sequence[F32 | None]
    ) -> tuple[F32, list[F32]]:
        with self._lock:
            used: list[int] = []
            try:
                for state in states:
                    used.append(self.place(state))
                logits = self._model.forward(used, runs)
                new = [self.fetch(slot) for slot in used]
            except BaseException:
                for slot in used:
                    self._slots.give_back(slot)
                raise
            for slot, each in zip(used, new, strict=True):
                self._slots.remember(slot, each)
            return logits, new

    def _checked(self, state: F32 | None) -> F32:
        if state is None:
            return self._start
        if state.shape != (self._layout.size,) or state.dtype != np.float32:
            raise UsageError(
                f"A state of this model is float32 [{self._layout.size}], "
                f"not {state.dtype} {list(state.shape)}."
            )
        return np.ascontiguousarray(state)

    def _words_of(self, token_bytes: Sequence[bytes]) -> Words:
        """Looked through once for a list of tokens."""
        if self._words is None or self._words[0] is not token_bytes:
            self._words = (token_bytes, Words(token_bytes, self._spec.vocab_size))
        return self._words[1]
