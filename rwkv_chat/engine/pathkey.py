"""The name of a state: what model, and what it has read."""

import hashlib
from collections.abc import Iterable, Sequence

from rwkv_chat.engine.ids import pack_ids

__all__ = ["path_keys"]


def path_keys(fingerprint: str, path: Iterable[Sequence[int]]) -> list[str]:
    """The key at the end of each part of `path`.

    A key is the sha256 of the model's fingerprint and of all ids so far as little-endian uint32, so
    two conversations that begin alike share the states of their common beginning.

    Raises:
        UsageError: an id is negative or does not fit.
    """
    digest = hashlib.sha256(fingerprint.encode())
    keys = []
    for ids in path:
        digest.update(pack_ids(ids))
        keys.append(digest.copy().hexdigest())
    return keys
