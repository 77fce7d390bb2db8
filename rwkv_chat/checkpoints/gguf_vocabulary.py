"""The vocabulary inside GGUF files: tokens with the escapes of Python's bytes literals."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rwkv_chat.checkpoints.gguf_header import Header
from rwkv_chat.errors import NotAModelError, ShapeError, UnsupportedModelError
from rwkv_chat.tokenizer.parse import render
from rwkv_chat.tokenizer.world import world_tokens

__all__ = ["describe_vocabulary"]

_UNUSED = 5
_MAX_TEXT = 4 << 20  # it becomes a part of a header of at most 16 MiB
_WORLD_IDS = 65_530  # others need not be compared with it
# No byte is looked at twice.
_ESCAPED = re.compile(rb"""(?:[^\\]++|\\(?:[\\'"tnr]|x[0-9a-fA-F]{2}))*+""")


def describe_vocabulary(path: Path, header: Header, rows: int) -> Mapping[str, str]:
    """What a GGUF file says of its tokenizer, in the words of a converted file's metadata.

    `rows` is the number of rows of its embedding.

    Returns:
        "tokenizer": "world" or "bytes" where the tokens are those, "unknown" where they cannot be
        used, else "inside"; and then "vocabulary": the tokens in the text format of RWKV. Nothing
        where the file has no tokenizer.

    Raises:
        ShapeError: there are more tokens than rows.
        NotAModelError: the tokens break the format.
        UnsupportedModelError: they are too long.
    """
    tokens, model = header.values.get("tokenizer.ggml.tokens"), header.text("tokenizer.ggml.model")
    if not isinstance(tokens, list) or not tokens:
        return {}
    if len(tokens) > rows:
        raise ShapeError(
            f"{path} has {len(tokens)} tokens, and an embedding of {rows} rows. "
            "The file does not fit together: get it again."
        )
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
    text = render(found)
    if len(text.encode()) > _MAX_TEXT:
        raise UnsupportedModelError(
            f"{path}: the vocabulary inside is longer than {_MAX_TEXT >> 20} MiB. "
            "Get the model as .safetensors or .pth, with its vocabulary beside it as vocab.txt."
        )
    return {"tokenizer": "inside", "vocabulary": text}


def _unescaped(path: Path, tokens: Sequence[bytes | int]) -> list[bytes]:
    texts = [token for token in tokens if isinstance(token, bytes)]
    if len(texts) < len(tokens) or not all(map(_ESCAPED.fullmatch, texts)):
        raise NotAModelError(
            f"{path} is damaged: a token of its vocabulary is not escaped as it should be."
        )
    return [
        text.decode("unicode_escape").encode("latin-1") if b"\\" in text else text for text in texts
    ]
