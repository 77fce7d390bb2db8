"""The compiled kernels as a backend: this CPU, no torch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from rwkv_chat import _native
from rwkv_chat.checkpoints.q8 import SCALE
from rwkv_chat.engine.backend import Decoder, DecoderConfig
from rwkv_chat.engine.ids import check_batch, check_ids
from rwkv_chat.errors import EngineError, UsageError
from rwkv_chat.models.generations import NATIVE_GENERATIONS
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import F32, StateLayout

__all__ = ["NativeBackend", "count_cores", "read_bandwidth"]

_MAX_THREADS = 256
_VALUE = ".ffn.value.weight"


def count_cores() -> int:
    """Physical cores that this process may use: how many threads compute if nobody says."""
    return _native.count_cores()


def read_bandwidth(threads: int) -> float:
    """How fast `threads` threads of this machine read memory, in bytes per second.

    Takes about a tenth of a second and 256 MiB.

    Raises:
        EngineError: `threads` is out of range, or RWKV_CHAT_ISA names no kernels of this CPU.
    """
    with _refusals(EngineError):
        return _native.read_bandwidth(threads)


@contextmanager
def _refusals(error: type[EngineError] | type[UsageError]) -> Iterator[None]:
    """Turn what the compiled core refuses into an error of ours; its texts are whole sentences."""
    try:
        yield
    except (ValueError, IndexError, TypeError) as refusal:
        raise error(str(refusal)) from refusal


class NativeBackend:
    """A loaded model on the compiled kernels; see `engine.backend.Backend`."""

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, npt.NDArray[np.float32 | np.uint16 | np.int8 | np.uint8]],
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Borrow the weights.

        Args:
            spec: sizes of the model.
            tensors: the converted form: vectors float32; matrices float32, bfloat16 as uint16, int8
                in tiles or with their scales (see checkpoints.q8), or packed as uint8 (see
                checkpoints.q4). The arrays (or their mapped file) must not change while the model
                lives.
            threads: how many compute; None means one per physical core.
            isa: one of those that `rwkv-chat doctor` names; None means RWKV_CHAT_ISA or else the
                fastest.

        Raises:
            EngineError: the kernels cannot be used, or a tensor does not fit the spec.
        """
        if spec.generation not in NATIVE_GENERATIONS:
            raise EngineError(
                f"There are no kernels for RWKV-{spec.generation}. Unset RWKV_CHAT_BACKEND."
            )
        if threads is not None and not 1 <= threads <= _MAX_THREADS:
            raise EngineError(f"threads must lie between 1 and {_MAX_THREADS}, not {threads}.")
        with _refusals(EngineError):
            self._model = _native.Model(asdict(spec), tensors, threads or 0, isa or "")
        self._spec = spec
        self._layout = StateLayout.of(spec)
        sizes = [(name.removesuffix(SCALE), array.nbytes) for name, array in tensors.items()]
        self._step_bytes = sum(n for name, n in sizes if not name.endswith(("emb.weight", _VALUE)))
        self._value_bytes = sum(n for name, n in sizes if name.endswith(_VALUE))
        self._n_tokens = 0
        self._first_active = 0
        self._vocabulary: tuple[Sequence[bytes], _native.Vocabulary] | None = None

    @property
    def name(self) -> str:
        """Such as "native avx512, 2 threads"."""
        threads = self._model.threads
        return f"native {self._model.isa}, {threads} thread{'s' if threads > 1 else ''}"

    @property
    def spec(self) -> ModelSpec:
        """The sizes of the model."""
        return self._spec

    @property
    def layout(self) -> StateLayout:
        """The parts of the state."""
        return self._layout

    @property
    def isa(self) -> str:
        """The instruction set in use, such as "avx512"."""
        return self._model.isa

    @property
    def threads(self) -> int:
        """How many threads compute."""
        return self._model.threads

    def reset_counters(self) -> None:
        """Begin to count for `ffn_zero_fraction`."""
        self._n_tokens = 0
        self._first_active = self._model.active_channels

    def ffn_zero_fraction(self) -> float:
        """The share of the channel mix's hidden channels that was zero since `reset_counters`.

        Counts what went through `forward` and `forward_batch`; 0 if nothing did.
        """
        total = self._n_tokens * self._spec.n_layer * self._spec.n_ffn
        active = self._model.active_channels - self._first_active
        return 1 - active / total if total else 0.0

    def weight_bytes_per_step(self, zero_fraction: float) -> int:
        """Bytes of weights that one step reads when this share of hidden channels is zero."""
        return self._step_bytes + round(self._value_bytes * (1 - zero_fraction))

    def forward(self, ids: Sequence[int], state: F32 | None) -> tuple[F32, F32]:
        """Feed `ids` after `state`; see `engine.backend.Backend.forward`."""
        checked = check_ids(ids, self._spec.vocab_size)
        with _refusals(UsageError):
            result = self._model.forward(checked, state)
        self._n_tokens += len(checked)
        return result

    def forward_batch(
        self, ids: Sequence[int], states: Sequence[F32 | None]
    ) -> tuple[F32, list[F32]]:
        """Feed one id to each of B states; see `engine.backend.Backend.forward_batch`."""
        checked = check_batch(ids, states, self._spec.vocab_size)
        with _refusals(UsageError):
            logits, new = self._model.forward_batch(checked, states)
        self._n_tokens += len(checked)
        return logits, new

    def decoder(self, state: F32, logits: F32, config: DecoderConfig) -> Decoder:
        """Start or continue an answer; see `engine.backend.Backend.decoder`."""
        sampling = config.sampling
        with _refusals(UsageError):
            return _native.Decoder(
                self._model,
                self._vocabulary_of(config.token_bytes),
                state,
                logits,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                presence=sampling.presence,
                frequency=sampling.frequency,
                decay=sampling.decay,
                seed=config.seed,
                stops=config.stops,
                exempt=check_ids(config.exempt, self._spec.vocab_size),
                generated=check_ids(config.generated, self._spec.vocab_size),
                end=config.end,
            )

    def run_together(
        self, decoders: Sequence[Decoder], limits: Sequence[int], seconds: float
    ) -> list[tuple[list[int], str]]:
        """One pass over the weights for all; see `engine.backend.Backend.run_together`."""
        own = [each for each in decoders if isinstance(each, _native.Decoder)]
        if len(own) != len(decoders):
            raise UsageError("A decoder of another backend cannot run together with these.")
        with _refusals(UsageError):
            return _native.Decoder.run_together(own, limits, seconds)

    def _vocabulary_of(self, token_bytes: Sequence[bytes]) -> _native.Vocabulary:
        """Built once for a list of tokens: every answer of a conversation brings the same."""
        if self._vocabulary is None or self._vocabulary[0] is not token_bytes:
            self._vocabulary = (token_bytes, _native.Vocabulary(token_bytes))
        return self._vocabulary[1]
