"""Which panes are open, kept for the next start."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

__all__ = ["MOST_PANES", "Layout", "Place"]

MOST_PANES = 4


@dataclass(frozen=True, slots=True)
class Place:
    """What a pane shows: a conversation, and the turn at which its path ends."""

    conversation: str
    leaf: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The panes from left to right; `focused` counts from 0."""

    places: tuple[Place, ...] = ()
    focused: int = 0

    def to_json(self) -> dict[str, object]:
        """A JSON object from which `from_json` makes an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> "Layout":
        """What can be used of `data`: a layout without panes at worst."""
        if not isinstance(data, Mapping):
            return cls()
        found = data.get("places")
        places = tuple(
            Place(**place)
            for place in (found if isinstance(found, list | tuple) else [])
            if isinstance(place, Mapping)
            and set(place) == {"conversation", "leaf"}
            and all(isinstance(value, str) for value in place.values())
        )[:MOST_PANES]
        focused = data.get("focused")
        if not isinstance(focused, int) or not 0 <= focused < len(places):
            focused = 0
        return cls(places, int(focused))
