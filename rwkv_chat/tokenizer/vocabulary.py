"""A vocabulary at work: text to ids, and back."""

import hashlib
from collections.abc import Callable, Sequence

from rwkv_chat._native import Vocabulary as _Native
from rwkv_chat.errors import TokenizerError
from rwkv_chat.tokenizer.parse import pack

__all__ = ["Encoder", "Vocabulary"]

Encoder = Callable[[bytes], list[int]]
"""The ids of bytes, which are UTF-8 but for what a model has cut off."""

_EXEMPT = b" \t0123456789"


class Vocabulary:
    """Text to ids and back; implements `chat.ports.Tokenizer`.

    Encoding is not homomorphic: `encode(a) + encode(b)` may differ from `encode(a + b)`, so ids are
    kept, not made anew.

    `name` is for people. `fingerprint` is the sha256 of the tokens, hexadecimal, whatever the
    number of rows. `vocab_size` is the number of rows of the model, V. `token_bytes` holds the
    bytes of every id, [V]; an id without any is never sampled, but for `end`, which ends an answer
    (None: no id does). `exempt` are the ids of blanks, tabs and digits, which repetition penalties
    leave alone.
    """

    def __init__(
        self,
        name: str,
        tokens: Sequence[bytes],
        vocab_size: int | None = None,
        *,
        end: int | None = 0,
        encoder: Encoder | None = None,
    ) -> None:
        """Use `tokens` (the bytes of every id from 0) for a model with `vocab_size` rows.

        Without an `encoder` each place takes the longest token that fits: where every byte has a
        token, every byte string can be encoded and comes back exactly.

        Raises:
            TokenizerError: there are more tokens than rows.
        """
        if vocab_size is None:
            vocab_size = len(tokens)
        if len(tokens) > vocab_size:
            raise TokenizerError(
                f"The {name} vocabulary has {len(tokens)} ids, but the model has only "
                f"{vocab_size} rows. Choose the tokenizer that belongs to this model."
            )
        self.name = name
        self.fingerprint = hashlib.sha256(pack(tokens)).hexdigest()
        self.vocab_size = vocab_size
        self.token_bytes: tuple[bytes, ...] = (*tokens, *[b""] * (vocab_size - len(tokens)))
        self.end = end
        self.exempt: tuple[int, ...] = tuple(
            i for i, token in enumerate(tokens) if len(token) == 1 and token in _EXEMPT
        )
        self._native = _Native(self.token_bytes)
        self._encode: Encoder = encoder or self._native.encode

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of `text`.

        Lone surrogates, which no UTF-8 can hold, are read as U+FFFD.
        """
        return self._encode(_to_utf8(text) if isinstance(text, str) else text)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that `ids` stand for.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        try:
            return self._native.decode(ids)
        except (IndexError, OverflowError, TypeError) as error:
            raise TokenizerError(
                f"These token ids do not belong to the {self.name} vocabulary, whose ids are whole "
                f"numbers from 0 to {self.vocab_size - 1}. Open them with the model they come from."
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text that `ids` stand for; impossible or cut off characters become U+FFFD.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")


def _to_utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return joined.encode("utf-8")
