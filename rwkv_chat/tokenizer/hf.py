"""Byte-level BPE from a `tokenizer.json`: the vocabulary of the Pile and Raven models, and others.

Its tokens are written in an alphabet of 256 printable characters, one for each byte. Here they are
their real bytes, so that incomplete characters and stops inside a token are handled as for World.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rwkv_chat.errors import TokenizerError
from rwkv_chat.tokenizer.fit import mismatch
from rwkv_chat.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["byte_level"]

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(256) if byte not in _PRINTABLE)
_ALPHABET = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + n): byte for n, byte in enumerate(_OTHERS)
}
_IN_UTF8 = frozenset(range(0xF5)) - {0xC0, 0xC1}
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_LINE_END, _BLANK_LINE = 187, 535  # of the 20B vocabulary
_INVALID = re.compile("([\udc80-\udcff])")


def byte_level(table: Mapping[str, Any], source: str, vocab_size: int) -> Vocabulary:
    """The vocabulary in `table`, the object of a tokenizer.json, for `vocab_size` rows.

    Special tokens are never read from a text, and never sampled, but for the one that ends a
    document. Texts come back as they were but for the file's own normalisation (NFC for 20B). A
    blank line at the end of a text becomes two line ends in the 20B vocabulary: the models have
    seen it only so.

    Raises:
        TokenizerError: it is no byte-level BPE, is damaged, or has ids beyond the rows.
    """
    tokenizer = _build(table, source)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if max(ids.values(), default=0) >= vocab_size:
        raise mismatch(source, max(ids.values()) + 1, vocab_size)
    added = tokenizer.get_added_tokens_decoder()
    tokens = [b""] * (max(ids.values(), default=-1) + 1)
    for text, number in ids.items():
        if number not in added:
            tokens[number] = _bytes_of(text, source)
        elif not added[number].special:
            tokens[number] = added[number].content.encode("utf-8", "replace")
    single = {token[0]: number for number, token in enumerate(tokens) if len(token) == 1}
    absent = sorted(_IN_UTF8 - single.keys())
    if absent:
        raise TokenizerError(
            f"{source} has no token for {len(absent)} single bytes, {absent[0]:#04x} among them, "
            "so not every text could be written. Use a byte-level tokenizer."
        )
    special = {token.content: number for number, token in added.items() if token.special}
    is_20b = tokens[_LINE_END : _LINE_END + 1] + tokens[_BLANK_LINE : _BLANK_LINE + 1]
    encoder = _Encoder(tokenizer, single, split=is_20b == [b"\n", b"\n\n"])
    return Vocabulary(
        "20B" if encoder.split else "byte-level BPE",
        tokens,
        vocab_size,
        end=next((special[name] for name in _ENDS if name in special), None),
        encoder=encoder,
    )


class _Encoder:
    """`split`: a blank line at the end is two line ends."""

    def __init__(self, tokenizer: "Tokenizer", single: Mapping[int, int], *, split: bool) -> None:
        self._tokenizer = tokenizer
        self._single = single
        self.split = split

    def __call__(self, data: bytes) -> list[int]:
        ids: list[int] = []
        for piece in _INVALID.split(data.decode("utf-8", "surrogateescape")):
            byte = ord(piece) - 0xDC00 if _INVALID.fullmatch(piece) else None
            if byte is None or byte not in self._single:
                text = piece if byte is None else "\ufffd"
                ids += self._tokenizer.encode(text, add_special_tokens=False).ids
            else:
                ids.append(self._single[byte])
        if self.split and ids[-1:] == [_BLANK_LINE]:
            ids[-1:] = [_LINE_END, _LINE_END]
        return ids


def _build(table: Mapping[str, Any], source: str) -> "Tokenizer":
    from tokenizers import Tokenizer  # slow

    try:
        text = json.dumps(_plain(table, source))
        tokenizer = Tokenizer.from_str(text)
        # A text that spells a special token is a text.
        tokenizer.encode_special_tokens = True
    except TokenizerError:
        raise
    except BaseException as error:
        # A panic of the library's core derives from BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"{source} is not a usable tokenizer file ({str(error)[:200]}). Copy it again."
        ) from error
    return tokenizer


def _plain(table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`table` without all that adds to a text, cuts it, or leaves its encoding to chance.

    Raises:
        TokenizerError: it describes something else than a byte-level BPE.
    """
    model = table["model"]
    parts = list(_parts(table.get("pre_tokenizer")))
    affixes = (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"))
    levels = [part for part in parts if part.get("type") == "ByteLevel"]
    if model.get("type", "BPE") != "BPE" or not levels or any(affixes):
        raise TokenizerError(
            f"{source} is a tokenizer of a kind that is not supported. Use a byte-level BPE, "
            "such as 20B_tokenizer.json."
        )
    for part in levels:
        part["add_prefix_space"] = False
    added = [{**token, "lstrip": False, "rstrip": False} for token in table["added_tokens"]]
    nothing = dict.fromkeys(("truncation", "padding", "post_processor"))
    return {**table, **nothing, "added_tokens": added, "model": {**model, "dropout": None}}


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer and those it is made of."""
    if isinstance(part, dict):
        yield part
        for inner in part.get("pretokenizers") or ():
            yield from _parts(inner)


def _bytes_of(token: str, source: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in token)
    except KeyError as error:
        raise TokenizerError(
            f"{source} has the token {token[:40]!a}, which is not written in bytes. "
            "Use a byte-level tokenizer, such as 20B_tokenizer.json."
        ) from error
