"""A loaded model: its backend, its tokenizer, and its states as values."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rwkv_chat.checkpoints import statefile
from rwkv_chat.checkpoints.startstate import read_start
from rwkv_chat.checkpoints.statefile import SavedState, StateOwner
from rwkv_chat.engine.backend import Backend, DecoderConfig
from rwkv_chat.errors import SnapshotError, UsageError
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import F32, StateLayout
from rwkv_chat.tokenizer.vocabulary import Vocabulary

__all__ = ["Decoding", "Model", "State"]


@dataclass(frozen=True, slots=True)
class Decoding:
    """Where the sampling of an answer stands: what a decoder needs to go on besides the state.

    `pending` are its last bytes while they are no complete UTF-8, `penalties` maps ids to counts.
    """

    pending: bytes = b""
    penalties: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    draws: int = 0

    @classmethod
    def of(cls, generated: Sequence[int], config: DecoderConfig) -> "Decoding":
        """After an answer of the ids `generated`."""
        exempt = set(config.exempt)
        counts: dict[int, float] = {}
        for age, token in enumerate(reversed(generated)):
            if token not in exempt:
                counts[token] = counts.get(token, 0.0) + config.sampling.decay**age
        tail = b"".join(config.token_bytes[token] for token in generated[-4:])
        return cls(_incomplete(tail), counts, config.seed, len(generated))


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """All that a model knows after some ids: a value, never changed.

    `data` is float32 [layout.size] and `logits` float32 [vocab_size], both read-only; `model` and
    `tokenizer` are fingerprints, `tokens` counts the ids read.
    """

    data: F32
    logits: F32
    layout: StateLayout
    model: str
    tokenizer: str
    tokens: int

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return self.data.nbytes + self.logits.nbytes

    @property
    def is_finite(self) -> bool:
        """Whether its logits are numbers; NaN in the state reaches them with the next id."""
        return bool(np.isfinite(self.logits).all())

    def saved(self, decoding: Decoding | None = None) -> SavedState:
        """The content of a state file; `decoding` describes the answer that it ends with."""
        decoding = decoding or Decoding()
        return SavedState(
            model=self.model,
            tokenizer=self.tokenizer,
            layout=self.layout,
            tokens=self.tokens,
            state=self.data,
            logits=self.logits,
            pending=decoding.pending,
            penalties=decoding.penalties,
            seed=decoding.seed,
            draws=decoding.draws,
        )

    def save(self, path: str | Path) -> None:
        """Write a file from which `Model.load_state` reads this state back to the bit.

        Raises:
            SnapshotError: the file cannot be written.
        """
        try:
            statefile.write(Path(path), self.saved())
        except OSError as error:
            raise SnapshotError(f"Cannot write the state to {path}: {error.strerror}.") from error


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Model:
    """What `rwkv_chat.load_model` returns.

    `fingerprint` is a sha256 over the weights as they are used and the spec, so it differs between
    weight types. `start` is the state that it begins with (None: that of its generation).
    """

    name: str
    backend: Backend
    tokenizer: Vocabulary
    template: str
    fingerprint: str
    weights: str
    start: F32 | None = None

    @property
    def spec(self) -> ModelSpec:
        """The shape of the model."""
        return self.backend.spec

    @property
    def state_bytes(self) -> int:
        """Size of one state in bytes, the last logits left out."""
        return 4 * self.backend.layout.size

    @property
    def memory_limit(self) -> str:
        """What its user should know of how far it remembers; "" where no limit is built in."""
        return self.spec.memory_limit

    @property
    def description(self) -> str:
        """For people."""
        millions = self.spec.n_parameters / 1e6
        size = f"{millions / 1000:.1f}B" if millions >= 1000 else f"{millions:.0f}M"
        limit = f"; {self.memory_limit}" if self.memory_limit else ""
        return f"RWKV-{self.spec.generation} {size}, {self.weights}, {self.backend.name}{limit}"

    def forward(self, ids: Sequence[int], state: State | None = None) -> tuple[F32, State]:
        """Feed `ids` after `state` (None: the start); `state` stays as it is.

        Returns:
            The logits after the last id, float32 [vocab_size], and the new state.

        Raises:
            UsageError: no ids, an id outside the vocabulary, or a state of another model.
        """
        new = self.read(ids, state)
        return new.logits, new

    def forward_batch(
        self, ids: Sequence[int], states: Sequence[State | None]
    ) -> tuple[F32, list[State]]:
        """Feed one id to each of several states in one pass over the weights.

        Returns:
            The logits, float32 [len(ids), vocab_size], and the new states.

        Raises:
            UsageError: as `forward`, or the lengths differ.
        """
        if len(ids) != len(states):
            raise UsageError(f"There are {len(ids)} ids for {len(states)} states.")
        logits, data = self.backend.forward_batch(ids, [self._data(s) for s in states])
        tokens = [1 + (s.tokens if s is not None else 0) for s in states]
        rows = zip(data, logits, tokens, strict=True)
        return logits, [self.state(d, row.copy(), n) for d, row, n in rows]

    def read(self, ids: Sequence[int], state: State | None) -> State:
        """The state after feeding `ids`; see `forward`."""
        logits, data = self.backend.forward(ids, self._data(state))
        before = state.tokens if state is not None else 0
        return self.state(data, logits, before + len(ids))

    def state(self, data: F32, logits: F32, tokens: int) -> State:
        """A state of this model; the arrays are made read-only."""
        data.setflags(write=False)
        logits.setflags(write=False)
        layout = self.backend.layout
        return State(data, logits, layout, self.fingerprint, self.tokenizer.fingerprint, tokens)

    @property
    def owner(self) -> StateOwner:
        """What a saved state must belong to."""
        return StateOwner(
            self.fingerprint,
            self.tokenizer.fingerprint,
            self.backend.layout,
            self.spec.vocab_size,
        )

    def load_state(self, path: str | Path) -> State:
        """Read a state that this model (with the same weight type) saved.

        Raises:
            SnapshotError: the file is damaged or belongs to another model.
        """
        return self.restore(statefile.read(Path(path), self.owner))

    def with_start(self, path: str | Path) -> "Model":
        """This model as it begins with a state: a file with `blocks.N.att.time_state`, as state
        tuning makes it, or any state that this model saved.

        It is another model, with another fingerprint: their states are never taken for each other.

        Raises:
            SnapshotError: the file holds no start state of this model.
        """
        path = Path(path)
        if statefile.is_saved_state(path):
            start = self.load_state(path).data
        else:
            start = read_start(path, self.spec)
        start.setflags(write=False)
        name = f"{self.fingerprint} {hashlib.sha256(start.tobytes()).hexdigest()}"
        return replace(self, start=start, fingerprint=hashlib.sha256(name.encode()).hexdigest())

    def restore(self, saved: SavedState) -> State:
        """The state in `saved`, which was read for this model's `owner`."""
        return self.state(saved.state, saved.logits, saved.tokens)

    def _data(self, state: State | None) -> F32 | None:
        if state is None:
            return self.start
        if state.model != self.fingerprint:
            raise UsageError(
                f"This state belongs to another model than {self.name} with {self.weights} weights."
            )
        return state.data


def _incomplete(data: bytes) -> bytes:
    """The bytes at the end of `data` that begin a character of UTF-8 without ending it."""
    for length in range(1, min(3, len(data)) + 1):
        first = data[-length]
        if first >= 0xC0:
            needed = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            return data[-length:] if length < needed else b""
        if first < 0x80:
            break
    return b""
