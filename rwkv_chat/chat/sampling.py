"""How the next token is chosen: the settings a person can turn."""

import math
from dataclasses import dataclass, fields

from rwkv_chat.errors import UsageError

__all__ = ["Sampling"]

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 10.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1_000_000),
    "min_p": (0.0, 1.0),
    "presence": (-10.0, 10.0),
    "frequency": (-10.0, 10.0),
    "decay": (0.0, 1.0),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings, applied in RWKV order.

    The order: penalties on the logits, softmax, then top-p, top-k and min-p cut the probabilities,
    then temperature is applied to what is left (`p ** (1 / temperature)`). `temperature` 0 takes
    the likeliest token. `top_k` 0 and `min_p` 0 cut nothing. Each step every count is multiplied
    by `decay`, then the chosen token's count grows by one; a token seen in this answer loses
    `presence + count * frequency`. `seed` None draws a fresh seed for every answer.
    """

    temperature: float = 1.0
    top_p: float = 0.5
    top_k: int = 0
    min_p: float = 0.0
    presence: float = 0.3
    frequency: float = 0.3
    decay: float = 0.996
    seed: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "seed" and value is None:
                continue
            low, high = _RANGES[field.name]
            whole = isinstance(low, int)
            right_type = isinstance(value, int) if whole else isinstance(value, (int, float))
            if not right_type or isinstance(value, bool) or not math.isfinite(value):
                kind = "a whole number" if whole else "a number"
                raise UsageError(f"{field.name} must be {kind}, not {value!r}.")
            if not low <= value <= high:
                raise UsageError(f"{field.name} must lie between {low} and {high}, not {value}.")
