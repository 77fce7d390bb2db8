"""One saved state: everything that is needed to go on from a point of a conversation, verified.

A safetensors file with two float32 tensors, `state` [layout.size] and `logits` [vocab_size]. Its
metadata names the model and the tokenizer it fits and holds the rest of the state of decoding;
`sha256` covers the payload and `seal` all other metadata, so that no bit can change unnoticed.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_chat.checkpoints import safetensors
from rwkv_chat.checkpoints.safetensors import TensorFile, TensorInfo, open_file
from rwkv_chat.errors import CheckpointError, SnapshotError
from rwkv_chat.models.state import F32, StateField, StateLayout

__all__ = ["SavedState", "StateOwner", "is_saved_state", "read", "write"]

_FORMAT = "rwkv-chat state 1"
_MAX_COUNT = 2**63 - 1
_MAX_PENDING = 64
_MAX_VOCAB = 2**24
_MAX_FLOATS = 2**30
_MAX_LAYOUT_TEXT = 4096
_MAX_DIMENSIONS = 4
_KEYS = frozenset(
    (
        *("format", "dtype", "model", "tokenizer", "layout", "vocab", "tokens", "pending"),
        *("penalties", "seed", "draws", "key", "sha256", "seal"),
    )
)


@dataclass(frozen=True, slots=True)
class StateOwner:
    """The model that a state must belong to: fingerprints of weights and vocabulary, and sizes."""

    model: str
    tokenizer: str
    layout: StateLayout
    vocab_size: int


@dataclass(frozen=True, slots=True, eq=False)
class SavedState:
    """A state as it is saved.

    Attributes:
        model: fingerprint of the weights.
        tokenizer: fingerprint of the vocabulary.
        layout: what the parts of `state` are.
        tokens: number of tokens that the state has seen.
        state: float32 [layout.size].
        logits: float32 [vocab_size], after the last token.
        pending: bytes of the answer that are not yet complete UTF-8.
        penalties: how often an id counts as seen in the answer.
        seed: of the answer's random numbers.
        draws: how many of them have been used.
        key: names the ids on the path; empty where nobody asks.
    """

    model: str
    tokenizer: str
    layout: StateLayout
    tokens: int
    state: F32
    logits: F32
    pending: bytes = b""
    penalties: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    draws: int = 0
    key: str = ""

    @property
    def owner(self) -> StateOwner:
        """The model it belongs to."""
        return StateOwner(self.model, self.tokenizer, self.layout, self.logits.size)


def write(path: Path, saved: SavedState) -> None:
    """Write `saved` to `path`: atomically, durably, readable by its owner only.

    Raises:
        SnapshotError: the state is not finite, its parts contradict each other, or the file cannot
            be written (the OSError is then its cause).
    """
    _check_values(saved, "This state cannot be saved")
    state = np.ascontiguousarray(saved.state, dtype="<f4")
    logits = np.ascontiguousarray(saved.logits, dtype="<f4")
    metadata = {
        "format": _FORMAT,
        "dtype": "float32",
        "model": saved.model,
        "tokenizer": saved.tokenizer,
        "layout": _layout_text(saved.layout),
        "vocab": str(logits.size),
        "tokens": str(saved.tokens),
        "pending": saved.pending.hex(),
        "penalties": _penalties_text(saved.penalties),
        "seed": str(saved.seed),
        "draws": str(saved.draws),
        "key": saved.key,
        "sha256": _digest(state, logits),
    }
    metadata["seal"] = _seal(metadata)
    try:
        safetensors.write(path, {"state": state, "logits": logits}, metadata)
    except OSError as error:
        raise SnapshotError(f"The state cannot be saved to {path}: {error.strerror}.") from error


def is_saved_state(path: Path) -> bool:
    """Whether `path` says of itself that it is a saved state; `read` tells whether it is one."""
    try:
        with open_file(path) as file:
            return file.metadata.get("format") == _FORMAT
    except CheckpointError:
        return False


def read(path: Path, owner: StateOwner | None = None) -> SavedState:
    """Read `path` and verify all of it; with `owner`, also that the state belongs to that model.

    Raises:
        SnapshotError: it is no saved state, is damaged, or belongs to another model; the sentence
            names what differs.
    """
    try:
        with open_file(path) as file:
            return _read(path, file, owner)
    except CheckpointError as error:
        raise SnapshotError(f"{path} is no saved state, or it is damaged: {error}") from error


def _read(path: Path, file: TensorFile, owner: StateOwner | None) -> SavedState:
    meta = file.metadata
    kind = meta.get("format", "")
    if kind != _FORMAT:
        raise SnapshotError(
            f"{path} is not a saved state that this version can read ({kind[:40]!a})."
        )
    if meta.keys() != _KEYS or meta["seal"] != _seal(meta) or meta["dtype"] != "float32":
        raise SnapshotError(f"{path} is damaged: its description does not fit its seal.")
    try:
        layout = _layout(meta["layout"])
        vocab = _number(meta["vocab"], _MAX_VOCAB)
        numbers = {name: _number(meta[name], _MAX_COUNT) for name in ("tokens", "seed", "draws")}
        pending = bytes.fromhex(meta["pending"])
        penalties = _penalties(meta["penalties"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise SnapshotError(f"{path} is damaged: {error}.") from error
    if owner is not None:
        _compare(path, owner, StateOwner(meta["model"], meta["tokenizer"], layout, vocab))
    expected = {
        "state": TensorInfo("F32", (layout.size,), 0, layout.size * 4),
        "logits": TensorInfo("F32", (vocab,), layout.size * 4, (layout.size + vocab) * 4),
    }
    if dict(file.tensors) != expected:
        raise SnapshotError(f"{path} is damaged: its tensors are not those that it describes.")
    # Verified is what was copied, not a mapping that can change underneath.
    state, logits = file.array("state").copy(), file.array("logits").copy()
    if _digest(state, logits) != meta["sha256"]:
        raise SnapshotError(f"{path} is damaged: its content does not fit its checksum.")
    saved = SavedState(
        model=meta["model"],
        tokenizer=meta["tokenizer"],
        layout=layout,
        state=np.asarray(state, dtype=np.float32),
        logits=np.asarray(logits, dtype=np.float32),
        pending=pending,
        penalties=penalties,
        key=meta["key"],
        **numbers,
    )
    _check_values(saved, f"{path} cannot be used")
    return saved


def _compare(path: Path, owner: StateOwner, found: StateOwner) -> None:
    differences = [
        text
        for text, ours, theirs in (
            ("weights", owner.model, found.model),
            ("tokenizer", owner.tokenizer, found.tokenizer),
            ("layout of the state", owner.layout, found.layout),
            ("size of the vocabulary", owner.vocab_size, found.vocab_size),
        )
        if ours != theirs
    ]
    if differences:
        raise SnapshotError(
            f"{path} does not fit the loaded model: different {' and '.join(differences)} (saved "
            f"with {found.model[:12]!a}, loaded is {owner.model[:12]!a}). Load the model it was "
            "saved with."
        )


def _check_values(saved: SavedState, complaint: str) -> None:
    if saved.state.dtype != np.float32 or saved.state.shape != (saved.layout.size,):
        raise SnapshotError(f"{complaint}: its state does not have the size of its layout.")
    if saved.logits.dtype != np.float32 or saved.logits.ndim != 1 or not saved.logits.size:
        raise SnapshotError(f"{complaint}: its logits are not one float32 vector.")
    if not np.isfinite(saved.state).all() or not np.isfinite(saved.logits).all():
        raise SnapshotError(f"{complaint}: it holds numbers that are not finite.")
    counts = (saved.tokens, saved.seed, saved.draws)
    if not all(0 <= count <= _MAX_COUNT for count in counts) or len(saved.pending) > _MAX_PENDING:
        raise SnapshotError(f"{complaint}: a count of it is out of range.")
    if not all(
        0 <= token < saved.logits.size and math.isfinite(count) and count >= 0
        for token, count in saved.penalties.items()
    ):
        raise SnapshotError(f"{complaint}: its table of penalties holds impossible values.")


def _digest(state: F32, logits: F32) -> str:
    digest = hashlib.sha256()
    for array in (state, logits):
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def _seal(metadata: Mapping[str, str]) -> str:
    sealed = {name: text for name, text in metadata.items() if name != "seal"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def _layout_text(layout: StateLayout) -> str:
    def names(fields: tuple[StateField, ...]) -> list[list[object]]:
        return [[part.name, list(part.shape)] for part in fields]

    parts: list[object] = [layout.tag, layout.n_layer, names(layout.fields)]
    if layout.shared:
        parts.append(names(layout.shared))
    return json.dumps(parts, separators=(",", ":"))


def _layout(text: str) -> StateLayout:
    if len(text) > _MAX_LAYOUT_TEXT:
        raise ValueError("its layout is longer than that of any state")
    tag, n_layer, *groups = json.loads(text)
    if not 1 <= len(groups) <= 2:
        raise ValueError("its layout cannot be read")
    parts = [
        tuple(StateField(str(name), _shape(shape)) for name, shape in group) for group in groups
    ]
    layout = StateLayout(str(tag), _size(n_layer), *parts)
    if not 0 < layout.size <= _MAX_FLOATS:
        raise ValueError("its layout has an impossible size")
    return layout


def _shape(value: Any) -> tuple[int, ...]:
    if len(value) > _MAX_DIMENSIONS:
        raise ValueError("a part of its layout has too many dimensions")
    return tuple(_size(dim) for dim in value)


def _size(value: Any) -> int:
    if type(value) is not int or not 0 < value <= _MAX_FLOATS:
        raise ValueError("its layout has an impossible size")
    return value


def _number(text: str, limit: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19) or int(text) > limit:
        raise ValueError("a count of it is out of range")
    return int(text)


def _penalties_text(penalties: Mapping[int, float]) -> str:
    table = sorted((int(token), float(count)) for token, count in penalties.items())
    return json.dumps(table, separators=(",", ":"))


def _penalties(text: str) -> dict[int, float]:
    table: dict[int, float] = {}
    for token, count in json.loads(text):
        if type(token) is not int or type(count) not in (int, float) or token in table:
            raise ValueError("its table of penalties cannot be read")
        table[token] = float(count)
    return table
