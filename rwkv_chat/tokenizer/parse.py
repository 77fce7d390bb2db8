"""Vocabularies in their two forms: the text format of RWKV, and a compact form to keep.

The text format has one line for each token: its id, its bytes as a Python literal, their number.
Ids count up from 1; id 0 has no bytes and marks the end of a document.
"""

import ast
import re
import struct
from collections.abc import Sequence

from rwkv_chat.errors import TokenizerError

__all__ = ["pack", "parse", "render", "unpack"]

_MAX_TOKEN_BYTES = 1024
_ESCAPE = r"""\\(?:[\\'"abfnrtv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"""
_SINGLE = rf"""'(?:[^'\\\0\r\n]|{_ESCAPE})*'"""
_DOUBLE = rf'''"(?:[^"\\\0\r\n]|{_ESCAPE})*"'''
_LINE = re.compile(f"([0-9]{{1,8}}) (b?(?:{_SINGLE}|{_DOUBLE})) ([0-9]{{1,5}})")
_MAGIC = b"rwkv-chat vocabulary 1\n"


def parse(data: bytes, source: str) -> list[bytes]:
    """The bytes of every id, id 0 (none) first, from a file's content in the text format.

    Args:
        data: UTF-8, lines ended by \\n or \\r\\n.
        source: names the file in messages.

    Raises:
        TokenizerError: a line that breaks the format, a gap in the ids, a token that appears twice,
            or a byte that no token stands for.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{source} is not a vocabulary: byte {error.start} is not UTF-8. Copy the file again."
        ) from error
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    tokens = [b""]
    for number, line in enumerate(lines, start=1):
        token = _parse_line(line, number)
        if token is None:
            raise TokenizerError(
                f"Line {number} of {source} does not read `{number} LITERAL LENGTH`, such as "
                "`11 '\\n' 1`. Copy the vocabulary file again."
            )
        tokens.append(token)
    _check(tokens, source)
    return tokens


def _parse_line(line: str, number: int) -> bytes | None:
    match = _LINE.fullmatch(line)
    if match is None or int(match[1]) != number:
        return None
    literal = match[2]
    try:
        # Most tokens have no escape; evaluating only the others takes a fifth of the time.
        plain = literal[0] != "b" and "\\" not in literal
        value = literal[1:-1] if plain else ast.literal_eval(literal)
        token: bytes = value.encode("utf-8") if isinstance(value, str) else value
    except (SyntaxError, ValueError):
        return None
    return token if len(token) == int(match[3]) else None


def _check(tokens: Sequence[bytes], source: str) -> None:
    if max(map(len, tokens)) > _MAX_TOKEN_BYTES or b"" in tokens[1:]:
        raise TokenizerError(
            f"{source} has a token of no bytes, or of more than {_MAX_TOKEN_BYTES}. "
            "Copy the vocabulary file again."
        )
    distinct = set(tokens)
    if len(distinct) < len(tokens):
        raise TokenizerError(
            f"{source} lists {len(tokens) - len(distinct)} tokens twice. "
            "Copy the vocabulary file again."
        )
    absent = [byte for byte in range(256) if bytes([byte]) not in distinct]
    if absent:
        raise TokenizerError(
            f"{source} has no token for {len(absent)} single bytes, {absent[0]:#04x} among them, "
            "so not every text could be written. Use a vocabulary with all 256 bytes."
        )


def render(tokens: Sequence[bytes]) -> str:
    """The text format: the inverse of `parse`."""
    lines = []
    for index, token in enumerate(tokens[1:], 1):
        try:
            value: str | bytes = token.decode()
        except UnicodeDecodeError:
            value = token
        lines.append(f"{index} {value!r} {len(token)}\n")
    return "".join(lines)


def pack(tokens: Sequence[bytes]) -> bytes:
    """The compact form, the same for the same tokens: magic, their number as little-endian uint32,
    the lengths as uint16, then all bytes.
    """
    lengths = struct.pack(f"<I{len(tokens)}H", len(tokens), *map(len, tokens))
    return b"".join([_MAGIC, lengths, *tokens])


def unpack(packed: bytes) -> list[bytes]:
    """The tokens of what `pack` made. The caller has verified the hash of `packed`."""
    start = len(_MAGIC)
    (count,) = struct.unpack_from("<I", packed, start)
    lengths = struct.unpack_from(f"<{count}H", packed, start + 4)
    at = start + 4 + 2 * count
    tokens = []
    for length in lengths:
        tokens.append(packed[at : at + length])
        at += length
    return tokens
