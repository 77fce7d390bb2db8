"""The vocabulary inside GGUF files: tokens with the escapes of Python's bytes literals."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rwkv_chat.checkpoints.gguf_header import Header
from rwkv_chat.errors import NotAModelError
from rwkv_chat.tokenizer.parse import render
from rwkv_chat.tokenizer.world import world_tokens

__all__ = ["describe_vocabulary"]

_UNUSED = 5
_WORLD_IDS = 65_530  # others need not be compared with it
# No byte is looked at twice.
_ESCAPED = re.compile(rb"""(?:[^\\]++|\\(?:[\\'"tnr]|x[0-9a-fA-F]{2}))*+""")


def describe_vocabulary(path: Path, header: Header) -> Mapping[str, str]:
    """What a GGUF file says of its tokenizer, in the words of a converted file's metadata.

    Returns:
        "tokenizer": "world" or "bytes" where the tokens are those, "unknown" where they cannot be
        used, else "inside"; and then "vocabulary": the tokens in the text format of RWKV. Nothing
        where the file has no tokenizer.

    Raises:
        NotAModelError: the tokens break the format.
    """
    tokens, model = header.values.get("tokenizer.ggml.tokens"), header.text("tokenizer.ggml.model")
    if not isinstance(tokens, list) or not tokens:
        return {}
    if model != "rwkv":
        return {"tokenizer": "unknown"}
    types = header.values.get("tokenizer.ggml.token_type", [])
    used = len(tokens)
    if isinstance(types, list) and len(types) == len(tokens):
        while used > 1 and types[used - 1] == _UNUSED:
            used -= 1
    found = _unescaped(path, tokens[:used])
    if found == [bytes([byte]) for byte in range(256)]:
        return {"tokenizer": "bytes"}
    found[0] = b""  # the end of a document
    if len(found) == _WORLD_IDS and found == world_tokens():
        return {"tokenizer": "world"}
    return {"tokenizer": "inside", "vocabulary": render(found)}


def _unescaped(path: Path, tokens: Sequence[bytes | int]) -> list[bytes]:
    texts = [token for token in tokens if isinstance(token, bytes)]
    if len(texts) < len(tokens) or not all(map(_ESCAPED.fullmatch, texts)):
        raise NotAModelError(
            f"{path} is damaged: a token of its vocabulary is not escaped as it should be."
        )
    return [
        text.decode("unicode_escape").encode("latin-1") if b"\\" in text else text for text in texts
    ]
