"""Token ids as callers bring them, and as bytes."""

import sys
from array import array
from collections.abc import Iterable, Sequence, Sized
from operator import index
from typing import SupportsIndex

from rwkv_chat.errors import UsageError

__all__ = ["check_batch", "check_ids", "pack_ids"]


def check_ids(ids: Iterable[SupportsIndex], size: int) -> list[int]:
    """The ids as plain numbers, whether they come in a list or in an array of integers.

    Raises:
        UsageError: they are not whole numbers, or one is outside the vocabulary of `size` ids.
    """
    try:
        checked = [index(token) for token in ids]
    except TypeError:
        raise UsageError(
            "Token ids must be a sequence of whole numbers, such as [1, 2, 3]."
        ) from None
    for token in checked:
        if not 0 <= token < size:
            raise UsageError(f"Token id {token} is outside the vocabulary of {size}.")
    return checked


def check_batch(ids: Iterable[SupportsIndex], states: Sized, size: int) -> list[int]:
    """The ids of one step, one for each of the states.

    Raises:
        UsageError: see `check_ids`; or there are more or fewer states than ids.
    """
    checked = check_ids(ids, size)
    if len(checked) != len(states):
        raise UsageError(f"{len(checked)} token ids do not match {len(states)} states.")
    return checked


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as uint32, little-endian.

    Raises:
        UsageError: an id is negative or does not fit.
    """
    try:
        packed = array("I", ids)
    except (OverflowError, TypeError) as error:
        raise UsageError("A token id must be a whole number from 0 to 4294967295.") from error
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
