"""Choosing the next token, in plain numpy: the truth that the compiled sampler is compared with."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.models.state import F32

__all__ = ["Penalties", "random_number", "sample"]

F64 = npt.NDArray[np.float64]

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def random_number(seed: int, draw: int) -> float:
    """Number `draw` of the stream of `seed`, uniform in [0, 1): the splitmix64 finaliser."""
    z = (seed + _GOLDEN * (draw + 1)) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return float((z ^ (z >> 31)) >> 11) * 2.0**-53


def sample(
    logits: npt.NDArray[Any],
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    seed: int,
    draw: int,
) -> int:
    """The id that draw number `draw` of `seed` picks from `logits` [V], after penalties.

    Ids with a logit of minus infinity are never picked.
    """
    if temperature == 0:
        return int(np.argmax(logits))
    kept = _cut(_softmax(logits), top_p, top_k, min_p)
    # Dividing by the largest leaves the proportions as they are, and keeps powers from underflow.
    cumulative = np.cumsum((kept / kept.max()) ** (1 / temperature))
    target = random_number(seed, draw) * cumulative[-1]
    return int(np.searchsorted(cumulative, target, side="right"))


def _softmax(logits: npt.NDArray[Any]) -> F64:
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    result: F64 = probabilities / probabilities.sum()
    return result


def _cut(probabilities: F64, top_p: float, top_k: int, min_p: float) -> F64:
    """Set all but the most probable ids to 0.

    Ids as probable as the last one that top-p keeps stay; top-k keeps exactly k, of equally
    probable ids those that are lower.
    """
    order = np.argsort(-probabilities, kind="stable")
    falling = probabilities[order]
    kept = probabilities.copy()
    if top_p < 1:
        last = min(int(np.searchsorted(np.cumsum(falling), top_p)), len(falling) - 1)
        kept[probabilities < falling[last]] = 0
    if top_k:
        kept[order[top_k:]] = 0
    kept[probabilities < min_p * falling[0]] = 0
    return kept


class Penalties:
    """What the ids of one answer cost the ids to come."""

    def __init__(self, sampling: Sampling, exempt: Iterable[int], seen: Sequence[int] = ()) -> None:
        self._sampling = sampling
        self._exempt = frozenset(exempt)
        self._counts: dict[int, float] = {}
        for token in seen:
            self.count(token)

    def count(self, token: int) -> None:
        """Let all counts decay and add one for `token`."""
        for other in self._counts:
            self._counts[other] *= self._sampling.decay
        self._counts[token] = self._counts.get(token, 0.0) + 1.0

    def apply(self, logits: F32) -> F64:
        """A float64 copy of the logits [V] with the penalties taken off."""
        result = logits.astype(np.float64)
        for token, count in self._counts.items():
            if token not in self._exempt:
                result[token] -= self._sampling.presence + count * self._sampling.frequency
        return result
