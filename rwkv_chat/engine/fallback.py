"""A model on a GPU that goes on with the CPU when the GPU is lost."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from rwkv_chat.engine.backend import Backend, Decoder, DecoderConfig, run_in_turn
from rwkv_chat.errors import DeviceLostError
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import F32, StateLayout

__all__ = ["FallbackBackend"]

_Result = TypeVar("_Result")


class FallbackBackend:
    """See `engine.backend.Backend`. States are values of the host, so none is lost with a GPU.

    What reads text is done again by the CPU at once. An answer that is being generated ends with
    DeviceLostError, and the next one begins from the last state that was kept.
    """

    def __init__(self, gpu: Backend, open_cpu: Callable[[], Backend]) -> None:
        self._current = gpu
        self._open_cpu = open_cpu
        self._lost = False

    @property
    def name(self) -> str:
        """That of what computes."""
        return f"{self._current.name} (the GPU was lost)" if self._lost else self._current.name

    @property
    def spec(self) -> ModelSpec:
        """The sizes of the model."""
        return self._current.spec

    @property
    def layout(self) -> StateLayout:
        """The parts of the state."""
        return self._current.layout

    def forward(self, ids: Sequence[int], state: F32 | None) -> tuple[F32, F32]:
        """Feed `ids` after `state`; see `engine.backend.Backend.forward`."""
        return self._try(lambda backend: backend.forward(ids, state))

    def forward_batch(
        self, ids: Sequence[int], states: Sequence[F32 | None]
    ) -> tuple[F32, list[F32]]:
        """Feed one id to each of B states; see `engine.backend.Backend.forward_batch`."""
        return self._try(lambda backend: backend.forward_batch(ids, states))

    def decoder(self, state: F32, logits: F32, config: DecoderConfig) -> Decoder:
        """Start or continue an answer; see `engine.backend.Backend.decoder`."""
        return self._try(lambda backend: backend.decoder(state, logits, config))

    def run_together(
        self, decoders: Sequence[Decoder], limits: Sequence[int], seconds: float
    ) -> list[tuple[list[int], str]]:
        """See `engine.backend.Backend.run_together`; some may be of a GPU that was lost."""
        return run_in_turn(decoders, limits, seconds)

    def _try(self, work: Callable[[Backend], _Result]) -> _Result:
        try:
            return work(self._current)
        except DeviceLostError:
            if self._lost:
                raise
        self._current = self._open_cpu()
        self._lost = True
        return work(self._current)
