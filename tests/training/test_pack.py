"""The vocabulary, the pieces of a chat, and rows drawn from packed text."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat._native import Vocabulary
from rwkv_chat.errors import UsageError
from rwkv_chat.tokenizer.load import read_vocabulary
from rwkv_chat.tokenizer.parse import render
from rwkv_chat.tokenizer.world import world_tokens
from rwkv_chat.training import pack
from rwkv_chat.training.batches import open_packed

CHAT = {"turns": ["Hi!", "Hello! How are you?", "你好", "你好！"]}
TEXT = {"text": "The fox ran.\nThe hen hid."}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder packed from a few rows of every source."""
    text = tmp_path / "text"
    text.mkdir()
    for name in pack.MIX:
        row = TEXT if name == "childrens_books" else CHAT
        lines = [json.dumps({**row, "number": number}) for number in range(120)]
        (text / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "packed"
    pack.main(["--text", str(text), "--out", str(out), "--rows", "300"])
    return out


def test_a_chosen_vocabulary_has_all_bytes_and_the_most_used() -> None:
    world = world_tokens()
    counts = Counter({b" the": 5, b"ing": 4, b" zebra": 1})
    tokens = pack.choose_tokens(counts, world, 259)
    assert len(tokens) == 259
    assert tokens[0] == b""
    assert tokens[1:257] == [bytes([byte]) for byte in range(256)]
    assert set(tokens[257:]) == {b" the", b"ing"}
    with pytest.raises(UsageError, match="257"):
        pack.choose_tokens(counts, world, 256)


def test_a_vocabulary_file_comes_back(tmp_path: Path) -> None:
    world = world_tokens()
    tokens = [b"", *world[1:257], *world[300:60000:17]]
    path = tmp_path / "vocab.txt"
    path.write_text(render(tokens), encoding="utf-8")
    assert read_vocabulary(path) == tokens


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_come_back_through_a_part_of_the_vocabulary(data: bytes) -> None:
    vocabulary = Vocabulary([b"", *[bytes([byte]) for byte in range(256)], b" the", b"\n\n"])
    assert vocabulary.decode(vocabulary.encode(data)) == data


def test_packed_documents_come_back_with_their_roles(packed: Path) -> None:
    vocabulary = Vocabulary(read_vocabulary(packed / "vocab.txt"))
    source = open_packed(packed).sources["templates"]
    ids = source.ids[source.starts[0] : source.starts[1]]
    roles = source.roles[source.starts[0] : source.starts[1]]
    assert ids[-1] == 0
    assert vocabulary.decode(ids[:-1].tolist()).decode() == (
        "User: Hi!\n\nAssistant: Hello! How are you?\n\nUser: 你好\n\nAssistant: 你好！\n\n"
    )
    answered = ids[roles == pack.ANSWER]
    assert vocabulary.decode(answered.tolist()).decode() == " Hello! How are you?\n\n 你好！\n\n"
    assert (
        vocabulary.encode(b"User: Hi!\n\nAssistant:")
        == ids[roles == pack.GIVEN][: len(vocabulary.encode(b"User: Hi!\n\nAssistant:"))].tolist()
    )


def test_a_vocabulary_can_be_kept(packed: Path, tmp_path: Path) -> None:
    arguments = ["--text", str(tmp_path / "text"), "--out", str(tmp_path / "again")]
    pack.main([*arguments, "--vocab", str(packed / "vocab.txt"), "--rows", "999"])
    kept = (tmp_path / "again" / "vocab.txt").read_bytes()
    assert kept == (packed / "vocab.txt").read_bytes()
    assert open_packed(tmp_path / "again").vocab_size == open_packed(packed).vocab_size


def test_about_one_document_in_fifty_is_held_out_whatever_joins(packed: Path) -> None:
    rows = [{"turns": [f"What is {number}?", "A number."]} for number in range(5000)]
    held = [row for row in rows if pack.is_held_out(row)]
    assert 60 < len(held) < 140
    opened = open_packed(packed)
    for source, other in zip(opened.sources.values(), opened.held_out.values(), strict=True):
        assert source.n_documents + other.n_documents == 120


def test_people_have_names_of_their_own() -> None:
    pieces = list(pack.pieces_of({"turns": ["Hi", "Yo", "Bye"]}, people=True))
    assert pieces == [
        ("Bob: Hi\n\n", pack.TEXT),
        ("Alice: Yo\n\n", pack.TEXT),
        ("Bob: Bye\n\n", pack.TEXT),
    ]


def test_rows_begin_with_a_document_and_end_them_with_id_0(packed: Path) -> None:
    opened = open_packed(packed)
    ids, roles = opened.general().draw(np.random.default_rng(1), 5, 100)
    assert ids.shape == roles.shape == (5, 100)
    starts = {source.ids[0] for source in opened.sources.values()}
    assert set(ids[:, 0].tolist()) <= {int(start) for start in starts}
    for row in ids:
        assert 2 <= (row == 0).sum() <= 20
    again, _ = opened.general().draw(np.random.default_rng(1), 5, 100)
    assert np.array_equal(ids, again)


def test_chat_holds_no_books(packed: Path) -> None:
    opened = open_packed(packed)
    book = int(opened.sources["childrens_books"].ids[0])
    ids, _ = opened.chat().draw(np.random.default_rng(2), 20, 200)
    assert book not in ids


def test_a_folder_that_is_not_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pack stage"):
        open_packed(tmp_path)
