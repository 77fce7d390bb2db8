"""Ids of conversations, turns and files: time first, then chance, so that they sort by age."""

import secrets
import time

__all__ = ["new_id"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_CHARS = 9
_RANDOM_CHARS = 7


def new_id() -> str:
    """16 characters of Crockford's base 32: 45 bits of milliseconds, then 35 random bits.

    Uniqueness rests on the primary keys of the store, order of turns on their numbers; a clock that
    jumps costs neither.
    """
    millis = time.time_ns() // 1_000_000
    bits = _RANDOM_CHARS * 5
    value = (millis % (1 << (_TIME_CHARS * 5))) << bits | secrets.randbits(bits)
    shifts = range((_TIME_CHARS + _RANDOM_CHARS - 1) * 5, -1, -5)
    return "".join(_ALPHABET[value >> shift & 31] for shift in shifts)
