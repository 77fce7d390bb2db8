"""Turns and states to store."""

import numpy as np

from rwkv_chat.chat.tree import Role, Turn
from rwkv_chat.checkpoints.statefile import SavedState
from rwkv_chat.models.state import StateField, StateLayout

MODEL = "a" * 64
LAYOUT = StateLayout("rwkv7", 2, (StateField("wkv", (2, 8, 8)),))


def turn(
    conversation: str,
    parent: str | None = None,
    text: str = "hello",
    seq: int = 0,
    ids: tuple[int, ...] = (),
    role: Role = Role.USER,
) -> Turn:
    """A turn as the session hands it to the store."""
    return Turn("", conversation, parent, seq, role, text, ids)


def state(seed: int = 0, model: str = MODEL) -> SavedState:
    """A state of about 2 KB."""
    numbers = np.random.default_rng(seed)
    return SavedState(
        model=model,
        tokenizer="b" * 64,
        layout=LAYOUT,
        tokens=seed,
        state=numbers.standard_normal(LAYOUT.size).astype(np.float32),
        logits=numbers.standard_normal(256).astype(np.float32),
    )
