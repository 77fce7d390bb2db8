"""The vocabularies of RWKV-1 and RWKV-2 models: a JSON object from ids to characters."""

import re
from collections.abc import Mapping

from rwkv_chat.errors import TokenizerError
from rwkv_chat.tokenizer.fit import mismatch
from rwkv_chat.tokenizer.vocabulary import Vocabulary

__all__ = ["characters"]

_UNKNOWN = "\ue083"  # what these models were trained with in place of rare characters


def characters(table: Mapping[str, object], source: str, vocab_size: int) -> Vocabulary:
    """The vocabulary in `table`, such as `{"0": "\\n", "1": " "}`, for `vocab_size` rows.

    A character that it lacks is read as its unknown character, else as a space, else left out.
    The unknown character itself is never sampled. No id ends an answer.

    Raises:
        TokenizerError: an entry that is no character at a whole number, a character that appears
            twice, or ids beyond the rows.
    """
    ids: dict[str, int] = {}
    for key, text in table.items():
        is_id = re.fullmatch("0|[1-9][0-9]{0,7}", key)
        if not is_id or not isinstance(text, str) or len(text) != 1 or text in ids:
            raise TokenizerError(
                f"{source} has {ascii(text)[:40]} at {key[:20]!a}, where a vocabulary of "
                "characters has one new character at a whole number. Copy the file again."
            )
        ids[text] = int(key)
    if ids and max(ids.values()) >= vocab_size:
        raise mismatch(source, max(ids.values()) + 1, vocab_size)
    tokens = [b""] * (max(ids.values(), default=-1) + 1)
    for text, number in ids.items():
        if text != _UNKNOWN:
            # Half a surrogate pair can stand alone in these files, but in no UTF-8.
            tokens[number] = text.encode("utf-8", "ignore")
    if not any(tokens):
        raise TokenizerError(f"{source} lists no characters. Copy the vocabulary file again.")
    unknown = ids.get(_UNKNOWN, ids.get(" "))

    def encode(data: bytes) -> list[int]:
        found = (ids.get(character, unknown) for character in data.decode("utf-8", "replace"))
        return [number for number in found if number is not None]

    return Vocabulary("characters", tokens, vocab_size, end=None, encoder=encode)
