"""Bytes that arrive in pieces, as text that never shows half a character."""

import codecs

__all__ = ["Utf8Stream"]


class Utf8Stream:
    """An incremental UTF-8 decoder.

    Bytes that can still become a character wait; bytes that never can become U+FFFD at once. The
    text is the same however the bytes are cut into pieces.
    """

    def __init__(self, pending: bytes = b"") -> None:
        """`pending` are the bytes that waited where an earlier stream was left."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.setstate((pending, 0))

    def feed(self, data: bytes) -> str:
        """The text that `data` completes."""
        return self._decoder.decode(data)

    @property
    def pending(self) -> bytes:
        """The bytes, at most three, that wait for the rest of their character."""
        return self._decoder.getstate()[0]

    def flush(self) -> str:
        """The end: what waits can no longer be completed and becomes U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
