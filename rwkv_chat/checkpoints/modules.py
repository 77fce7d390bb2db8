"""Whole models as torch saves them: objects of classes that are not here, with tensors inside."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SavedObject", "named_tensors"]

_MAX_PARTS = 1 << 16
_MAX_NAME = 256


@dataclass(slots=True, eq=False)
class SavedObject:
    """What a file tells of an object: its class by name, never looked up, and its attributes."""

    kind: str
    attributes: dict[str, Any] = field(default_factory=dict)


def named_tensors(module: SavedObject) -> dict[str, object]:
    """The parameters and buffers of a torch module by dotted names, as its state_dict has them.

    Raises:
        ValueError: it has more parts than any model, or is a part of itself.
    """
    found: dict[str, object] = {}
    waiting = [("", module)]
    seen = 0
    while waiting:
        prefix, current = waiting.pop()
        for kind in ("_parameters", "_buffers", "_modules"):
            for name, value in _items(current, kind):
                seen += 1
                if seen > _MAX_PARTS or len(prefix) + len(name) > _MAX_NAME:
                    raise ValueError("it has more parts, or parts in parts, than any model")
                if kind != "_modules":
                    found[prefix + name] = value
                elif isinstance(value, SavedObject):
                    waiting.append((f"{prefix}{name}.", value))
    return found


def _items(module: SavedObject, attribute: str) -> Iterator[tuple[str, Any]]:
    """What a module has under one of its three maps."""
    held = module.attributes.get(attribute)
    if isinstance(held, dict):
        yield from held.items()
