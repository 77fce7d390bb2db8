"""Token ids as callers bring them."""

from collections.abc import Iterable
from operator import index
from typing import SupportsIndex

from rwkv_chat.errors import UsageError

__all__ = ["check_ids"]


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
