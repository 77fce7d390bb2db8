"""Text files become rows that the application would feed, in parts that share nothing."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_chat.chat import templates
from rwkv_chat.chat.prompt import encode_path
from rwkv_chat.chat.tree import Role, Turn
from rwkv_chat.errors import UsageError
from rwkv_chat.tokenizer.load import load
from rwkv_chat.tokenizer.vocabulary import Vocabulary
from rwkv_chat.training.examples import Row, cut, divide, parse, read

CHAT = templates.get("chat")
TWO_CHATS = [{"turns": ["a", "b"]}, {"turns": ["c", "d\nmore", "e", "f"]}]


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return load("bundled", 8192)


@pytest.mark.parametrize(
    "text",
    [
        "User: a\nAssistant: b\n\nUser: c\nAssistant: d\nmore\nUser: e\nAssistant: f\n",
        "User: a\r\nAssistant:b\r\n\r\n\r\nUser: c\rAssistant: d\rmore\rUser: e\nAssistant: f",
        "User: a\n\nAssistant: b\n\n\nUser: c\n\nAssistant: d\nmore\n\nUser: e\n\nAssistant: f\n\n",
        "\nUser: a\n\nAssistant: b\n---\nUser: c\n\nAssistant: d\nmore\n\nUser: e\n\nAssistant: f",
    ],
    ids=["compact", "windows", "two blank lines", "dashes"],
)
def test_chats_are_read_in_both_forms(text: str) -> None:
    assert list(parse(text)) == TWO_CHATS


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("one\nline\n\ntwo\n", ["one\nline", "two"]),
        ("one\n\nparagraph\n\n\ntwo", ["one\n\nparagraph", "two"]),
        ("one\n\nparagraph\n---\ntwo", ["one\n\nparagraph", "two"]),
        ("whole\nfile\n", ["whole\nfile"]),
        ("a --- b\n----\nc", ["a --- b\n----\nc"]),
        ("He said\nUser: no", ["He said\nUser: no"]),
    ],
)
def test_plain_text_is_cut_at_the_widest_gaps(text: str, documents: list[str]) -> None:
    assert list(parse(text)) == [{"text": document} for document in documents]


@pytest.mark.parametrize(
    "text",
    [
        "User: a\n\nUser: b\n\nAssistant: c",
        "User: a\n\nAssistant: b\n\nUser: c",
        "User: a\nAssistant:\n\nUser: b\nAssistant: c",
        "User: a\nAssistant: b\n\nnarration",
    ],
)
def test_turns_that_do_not_alternate_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="by turns"):
        list(parse(text))


def test_json_lines_are_read_once_each(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"turns": ["a", "b"]}, {"text": "x\n\ny"}, {"turns": ["a", "b"]}, {"text": "  "}]
    path.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    assert read(path) == rows[:2]


@pytest.mark.parametrize(
    "line",
    [
        *("[1]", "{", '{"turns": []}', '{"turns": ["a"]}', '{"turns": ["a", 1]}'),
        *('{"text": 1}', '{"other": "a"}', '{"text": "a", "turns": "b"}', "[" * 100_000),
    ],
    ids=range(9),
)
def test_a_wrong_json_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(UsageError, match=r"a\.jsonl: line 2 "):
        read(path)


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        read(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        read(tmp_path / "binary")
    (tmp_path / "empty").write_text("\n \n\n\n")
    with pytest.raises(UsageError, match="is empty"):
        read(tmp_path / "empty")


def test_a_chat_is_what_the_application_feeds_and_only_answers_count(words: Vocabulary) -> None:
    said = ["Hi\n\nthere", "Hello.", "User: Bye", "See you."]
    (row,) = cut({"turns": said}, words, CHAT, 100)
    text = "User: Hi\nthere\n\nAssistant: Hello.\n\nUser: User: Bye\n\nAssistant: See you.\n\n"
    assert row.ids[-1] == 0
    assert words.decode(row.ids[:-1]) == text
    counted = [i for i, counts in zip(row.ids, row.counted, strict=True) if counts]
    assert words.decode(counted) == " Hello.\n\n See you.\n\n"
    turns = [
        Turn(id=str(i), conversation="c", parent=None, seq=i, role=role, text=text)
        for i, (role, text) in enumerate([(Role.USER, said[0]), (Role.ASSISTANT, "")])
    ]
    fed = [i for turn in encode_path(turns, CHAT, words, "off") for i in turn.ids]
    assert list(row.ids[: len(fed)]) == fed


@given(st.text(min_size=1, max_size=300), st.integers(1, 40))
def test_every_token_of_a_text_is_predicted_once(text: str, length: int) -> None:
    vocabulary = Vocabulary("bytes", [bytes([byte]) for byte in range(256)])
    rows = cut({"text": text}, vocabulary, CHAT, length)
    ids = [*vocabulary.encode(text), 0]
    assert [i for row in rows for i in row.ids[1:]] == ids[1:]
    assert all(2 <= len(row.ids) <= length + 1 for row in rows)
    assert all(row.counted == (False, *[True] * (len(row.ids) - 1)) for row in rows)
    assert all(first.ids[-1] == after.ids[0] for first, after in pairwise(rows))


def rows_of(*names: int) -> list[Row]:
    return [Row((1, name), (False, True)) for name in names]


@given(st.integers(2, 60), st.integers(0, 5))
def test_documents_are_dealt_out_whole_and_alike(count: int, seed: int) -> None:
    documents = [rows_of(*[name] * (1 + name % 3)) for name in range(2, 2 + count)]
    parts = divide(documents, seed)
    names = [{row.ids[1] for row in part} for part in (parts.learnt, parts.watched, parts.held_out)]
    assert sum(map(len, names)) == count == len(set.union(*names))
    assert sum(map(len, (parts.learnt, parts.watched, parts.held_out))) == sum(map(len, documents))
    assert parts.learnt
    assert parts.held_out
    assert bool(parts.watched) == (count >= 10)
    assert parts == divide(documents, seed)


def test_of_one_long_document_the_end_is_held_out() -> None:
    rows = rows_of(*range(2, 22))
    parts = divide([rows], 1)
    assert (*parts.learnt, *parts.watched, *parts.held_out) == tuple(rows)
    assert len(parts.held_out) == 2


@pytest.mark.parametrize("documents", [[], [[]], [rows_of(2)], [rows_of(2), []]])
def test_too_little_text_is_refused(documents: list[list[Row]]) -> None:
    with pytest.raises(UsageError, match="too short"):
        divide(documents, 1)
