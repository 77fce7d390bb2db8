"""Vocabularies of characters: what RWKV-1 and RWKV-2 models read."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_chat.errors import TokenizerError
from rwkv_chat.tokenizer.chars import characters
from rwkv_chat.tokenizer.choose import read_file

LETTERS = "\n !0abcé你好😀"
TABLE = {str(i): letter for i, letter in enumerate([*LETTERS, "\ue083"])}
UNKNOWN = len(LETTERS)
KNOWN = characters(TABLE, "vocab.json", 16)


@given(st.text(st.sampled_from(LETTERS)))
def test_a_text_of_known_characters_comes_back(text: str) -> None:
    ids = KNOWN.encode(text)
    assert len(ids) == len(text)
    assert KNOWN.decode(ids) == text


@given(st.one_of(st.text(), st.binary()))
def test_what_is_unknown_is_read_as_the_unknown_character(text: str | bytes) -> None:
    seen = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    ids = KNOWN.encode(text)
    assert [i == UNKNOWN for i in ids] == [character not in LETTERS for character in seen]


def test_the_unknown_character_is_never_sampled_and_no_id_ends_an_answer() -> None:
    assert KNOWN.end is None
    assert KNOWN.token_bytes[0] == b"\n"
    assert [i for i, token in enumerate(KNOWN.token_bytes) if not token] == [
        UNKNOWN,
        12,
        13,
        14,
        15,
    ]
    assert KNOWN.decode([4, UNKNOWN, 5]) == "ab"
    assert KNOWN.exempt == (1, 3)


def test_without_an_unknown_character_a_space_stands_for_it() -> None:
    spaced = characters({"0": " ", "1": "a"}, "x", 2)
    assert spaced.encode("aé") == [1, 0]
    assert spaced.token_bytes == (b" ", b"a")
    assert characters({"0": "b", "1": "a"}, "x", 2).encode("aéb") == [1, 0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8", "utf-8-sig"])
def test_files_of_either_encoding_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "vocab.json"
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    path.write_bytes(mark + json.dumps(TABLE, ensure_ascii=False).encode(encoding))
    assert read_file(path, 16).fingerprint == KNOWN.fingerprint


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"0": "a", "1": "a"}, "has 'a' at '1'"),
        ({"0": "a", "1": "bc"}, "has 'bc' at '1'"),
        ({"0": "a", "1": ""}, "has '' at '1'"),
        ({"0": "a", "1": 7}, "has 7 at '1'"),
        ({"0": "a", "one": "b"}, "has 'b' at 'one'"),
        ({"0": "a", "-1": "b"}, "has 'b' at '-1'"),
        ({"0": "a", "01": "b"}, "has 'b' at '01'"),
        ({"0": "a", "²": "b"}, "has 'b' at "),
        ({"0": "a", "9" * 5000: "b"}, "has 'b' at '9999"),
        ({"0": "a", "16": "b"}, "has 17 ids and the model 16 rows.*vocab.json"),
        ({"0": "\ue083"}, "lists no characters"),
        ({"0": "\ud800"}, "lists no characters"),
    ],
)
def test_what_is_no_vocabulary_is_refused(table: dict[str, str], says: str) -> None:
    with pytest.raises(TokenizerError, match=says):
        characters(table, "some.json", 16)
