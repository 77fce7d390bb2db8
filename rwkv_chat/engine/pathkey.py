"""The name of a state: what model, and what it has read."""

import hashlib
from collections.abc import Iterable, Sequence

__all__ = ["path_keys"]


def path_keys(fingerprint: str, path: Iterable[Sequence[int]]) -> list[str]:
    """The key at the end of each part of `path`.

    A key is the sha256 of the model's fingerprint and of all ids so far as little-endian uint32, so
    two conversations that begin alike share the states of their common beginning.
    """
    digest = hashlib.sha256(fingerprint.encode())
    keys = []
    for ids in path:
        digest.update(b"".join(token.to_bytes(4, "little") for token in ids))
        keys.append(digest.copy().hexdigest())
    return keys
