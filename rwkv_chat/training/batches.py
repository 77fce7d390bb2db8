"""Packed tokens on disk, and rows drawn from them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rwkv_chat.errors import UsageError

__all__ = ["Ids", "Mix", "Packed", "Roles", "Source", "open_packed"]

Ids = npt.NDArray[np.int64]
Roles = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Source:
    """Documents of one origin; each ends with id 0. `starts` has one entry more than documents."""

    name: str
    ids: npt.NDArray[np.uint16]
    roles: Roles
    starts: npt.NDArray[np.int64]

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1


class Mix:
    """Rows made of whole documents of several sources, each source with its share of tokens."""

    def __init__(self, sources: list[Source], shares: list[float]) -> None:
        if not sources or len(sources) != len(shares) or min(shares) <= 0:
            raise UsageError("A mix needs at least one source, each with a share above 0.")
        self._sources = sources
        # A document is drawn by its source: a source of long documents is drawn less often.
        chances = [
            share * source.n_documents / len(source.ids)
            for share, source in zip(shares, sources, strict=True)
        ]
        self._chances = np.array(chances) / sum(chances)

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> tuple[Ids, Roles]:
        """Ids int64 and roles uint8, both [rows, length]; each row begins with a document."""
        ids = np.zeros((rows, length), np.int64)
        roles = np.zeros((rows, length), np.uint8)
        for row in range(rows):
            filled = 0
            while filled < length:
                source = self._sources[rng.choice(len(self._sources), p=self._chances)]
                document = int(rng.integers(source.n_documents))
                start, end = source.starts[document], source.starts[document + 1]
                count = min(int(end - start), length - filled)
                ids[row, filled : filled + count] = source.ids[start : start + count]
                roles[row, filled : filled + count] = source.roles[start : start + count]
                filled += count
        return ids, roles


@dataclass(frozen=True, slots=True)
class Packed:
    """A folder written by `pack`."""

    vocab_size: int
    sources: dict[str, Source]
    held_out: dict[str, Source]
    bytes_held_out: dict[str, int]
    shares: dict[str, tuple[float, float]]

    @property
    def n_tokens(self) -> int:
        """Tokens of all training sources."""
        return sum(len(source.ids) for source in self.sources.values())

    def _mix(self, phase: int) -> Mix:
        names = [name for name in self.sources if self.shares[name][phase] > 0]
        shares = [self.shares[name][phase] for name in names]
        return Mix([self.sources[name] for name in names], shares)

    def general(self) -> Mix:
        """What the first part of a run reads."""
        return self._mix(0)

    def chat(self) -> Mix:
        """What the last part of a run reads."""
        return self._mix(1)


def _read(folder: Path, name: str) -> Source:
    return Source(
        name,
        np.fromfile(folder / f"{name}.ids", np.uint16),
        np.fromfile(folder / f"{name}.roles", np.uint8),
        np.fromfile(folder / f"{name}.starts", np.int64),
    )


def open_packed(folder: Path) -> Packed:
    """Open a folder written by `pack`.

    Raises:
        UsageError: it is not such a folder.
    """
    try:
        record = json.loads((folder / "packed.json").read_text(encoding="utf-8"))
        sources = {name: _read(folder, name) for name in record["sources"]}
        held_out = {name: _read(folder, f"{name}.held") for name in record["sources"]}
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder} was not written by the pack stage: {error}") from error
    return Packed(
        record["vocab_size"],
        sources,
        held_out,
        {name: source["bytes_held_out"] for name, source in record["sources"].items()},
        {name: tuple(source["shares"]) for name, source in record["sources"].items()},
    )
