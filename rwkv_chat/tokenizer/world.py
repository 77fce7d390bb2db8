"""The World vocabulary: 65,529 tokens, the same for all World and G1 models."""

import hashlib
from contextlib import suppress
from pathlib import Path

from rwkv_chat import paths
from rwkv_chat.errors import SettingsError, TokenizerError
from rwkv_chat.files import replacing
from rwkv_chat.tokenizer.packaged import packaged
from rwkv_chat.tokenizer.parse import pack, parse, unpack

__all__ = ["world_tokens"]

_FILE = "rwkv_vocab_v20230424.txt"
# Of the file with line ends \n; the package ships it with \r\n.
_FILE_MD5 = "dd1946a66e1721abeac49f9c75a1e844"
_PACKED_SHA256 = "7eb296c2087055d35f1beffbd2c65835ec890fa4b0587c61d1eed47e2b27de80"
_CACHE_NAME = "world-20230424.vocab"


def world_tokens() -> list[bytes]:
    """The bytes of ids 0 to 65529 (id 0: none), from the cache or from the package `rwkv`.

    The cache is trusted only when it has the one right hash, and is made again otherwise.

    Raises:
        TokenizerError: the package's file is absent or is not the official vocabulary.
    """
    cached = paths.cache_dir() / _CACHE_NAME
    with suppress(OSError):
        packed = cached.read_bytes()
        if hashlib.sha256(packed).hexdigest() == _PACKED_SHA256:
            return unpack(packed)
    tokens = _official()
    # A cache that cannot be written costs a tenth of a second at each start, nothing else.
    with suppress(OSError, SettingsError):
        paths.ensure_private(cached.parent)
        with replacing(cached) as file:
            file.write(pack(tokens))
    return tokens


def _official() -> list[bytes]:
    path = _locate()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"Cannot read the World vocabulary {path}: {error.strerror}. "
            "Install the package again: pip install --force-reinstall rwkv."
        ) from error
    data = data.replace(b"\r\n", b"\n")
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != _FILE_MD5:
        raise TokenizerError(
            f"{path} is not the official World vocabulary (its md5 is not {_FILE_MD5}). "
            "Install the package again: pip install --force-reinstall rwkv."
        )
    return parse(data, str(path))


def _locate() -> Path:
    path = packaged("rwkv", _FILE)
    if path is None:
        raise TokenizerError(
            "The World vocabulary is missing: the Python package rwkv, which ships it, is not "
            "installed. Run: pip install rwkv."
        )
    return path
