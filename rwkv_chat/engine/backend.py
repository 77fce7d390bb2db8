"""What every implementation of the model offers: token ids in, logits and token ids out.

All implementations obey: states are values and never changed; results do not depend on how ids are
split over calls, on the batch size or on the number of threads (to the bit).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import F32, StateLayout

__all__ = ["Backend", "Decoder", "DecoderConfig", "run_in_turn"]


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """How a Decoder samples and stops.

    The random number for the n-th token of an answer depends on `seed` and n alone, and the
    penalty counts on the ids generated in this answer, so a decoder is rebuilt exactly
    from `generated`. `token_bytes[i]` are the bytes of id i (empty: id i is never sampled, except
    `end`, which ends the answer; None: no id does). `exempt` ids get no penalties. `stops` are not
    empty; the answer ends with the token that completes one of them, whose bytes may go on behind
    it. What `generated` holds already stops nothing, but a stop may begin in it.
    """

    sampling: Sampling
    seed: int
    stops: tuple[bytes, ...]
    token_bytes: Sequence[bytes]
    exempt: tuple[int, ...] = ()
    generated: tuple[int, ...] = ()
    end: int | None = 0


class Decoder(Protocol):
    """One answer being generated. Each sampled id is fed at once: the state includes it."""

    def run(self, max_tokens: int, seconds: float) -> tuple[list[int], str]:
        """Generate until something ends it, or `seconds` are over (at least one token is tried).

        Returns:
            The new ids, and why it returned: "running" (time or max_tokens is used up), "stop" (a
            stop string ends within the bytes of the last id), "end" (that id was sampled; it is
            neither fed nor returned), "cancelled", or "non_finite" (the state is then unusable).
        """

    def cancel(self) -> None:
        """Make the current and every later `run` return within one token. From any thread."""

    @property
    def state(self) -> F32:
        """A copy of the state after the last id, float32 [layout.size]."""

    @property
    def logits(self) -> F32:
        """A copy of the logits after the last id, float32 [vocab_size]."""


def run_in_turn(
    decoders: Sequence[Decoder], limits: Sequence[int], seconds: float
) -> list[tuple[list[int], str]]:
    """`Backend.run_together` for a backend that has no batches: each gets its share of the time."""
    share = seconds / max(1, len(decoders))
    return [each.run(most, share) for each, most in zip(decoders, limits, strict=True)]


class Backend(Protocol):
    """A loaded model."""

    @property
    def name(self) -> str:
        """For people, such as "native avx512, 2 threads"."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def layout(self) -> StateLayout: ...

    def forward(self, ids: Sequence[int], state: F32 | None) -> tuple[F32, F32]:
        """Feed `ids` (at least one) after `state` (None: the start).

        Returns:
            Logits after the last id, float32 [vocab_size], and the new state, [layout.size].

        Raises:
            UsageError: no ids, an id outside the vocabulary, or a state of the wrong size.
        """

    def forward_batch(
        self, ids: Sequence[int], states: Sequence[F32 | None]
    ) -> tuple[F32, list[F32]]:
        """Feed one id to each of B states: logits float32 [B, vocab_size] and B new states."""

    def decoder(self, state: F32, logits: F32, config: DecoderConfig) -> Decoder:
        """Start (or continue) an answer after `state`, whose last logits are `logits`."""

    def run_together(
        self, decoders: Sequence[Decoder], limits: Sequence[int], seconds: float
    ) -> list[tuple[list[int], str]]:
        """`Decoder.run` for several decoders of this backend, none twice; `limits` are max_tokens.

        What each gives is equal to the bit to what it gives alone.
        """
