from pathlib import Path

import pytest

from rwkv_chat import checkpoints
from rwkv_chat.checkpoints import catalog
from rwkv_chat.errors import CheckpointError
from rwkv_chat.paths import models_dir
from tests.checkpoints.writers import as_fla7, write_folder
from tests.seeded import random_weights, small_spec


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships a model, or not, as the test makes the file or not."""
    monkeypatch.setattr(catalog, "bundled", lambda name: tmp_path / "data" / name)
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "model.safetensors"


def test_without_any_model_the_sentence_says_so(embedded: Path) -> None:
    assert catalog.available() == []
    with pytest.raises(CheckpointError, match=r'no model "embedded".*known models: none\.'):
        catalog.find("embedded")


def test_models_are_found_by_name_file_name_and_path(embedded: Path, tmp_path: Path) -> None:
    embedded.write_bytes(b"x")
    folder = models_dir()
    folder.mkdir(parents=True)
    for name in ("b.pth", "a.safetensors", "notes.txt", "c.st", "e.gguf", "f.bin"):
        (folder / name).write_bytes(b"12345")
    (folder / "d.pth").mkdir()
    entries = catalog.available()
    assert [(entry.name, entry.source) for entry in entries] == [
        ("embedded", "bundled"),
        ("a", "folder"),
        ("b", "folder"),
        ("c", "folder"),
        ("e", "folder"),
        ("f", "folder"),
    ]
    assert catalog.find("embedded") == embedded
    assert catalog.find("b") == catalog.find("b.pth") == folder / "b.pth"
    other = tmp_path / "other.bin"
    other.write_bytes(b"x")
    assert catalog.find(other) == catalog.find(str(other)) == other


def test_a_file_that_goes_meanwhile_is_left_out(
    embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models_dir()
    folder.mkdir(parents=True)
    for name in ("a.pth", "b.pth"):
        (folder / name).write_bytes(b"12345")
    measure = catalog._size

    def measure_late(path: Path) -> str:
        if path.name == "a.pth":
            path.unlink()
        return measure(path)

    monkeypatch.setattr(catalog, "_size", measure_late)
    assert [entry.name for entry in catalog.available()] == ["b"]


@pytest.mark.parametrize("name", ["nothing", "a\0b", "x" * 5000, "", "/", "../.."])
def test_what_is_not_there_is_refused_with_what_is(embedded: Path, name: str) -> None:
    embedded.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"known models: embedded\.") as caught:
        catalog.find(name)
    assert str(models_dir()) in str(caught.value)


def test_a_home_of_nobody_is_no_path() -> None:
    with pytest.raises(CheckpointError, match="no model"):
        catalog.find("~nobody-of-this-name/model.pth")


def test_folders_of_hugging_face_are_models(embedded: Path, tmp_path: Path) -> None:
    weights = as_fla7(random_weights(small_spec()), fused=True)
    write_folder(models_dir() / "goose.7", weights, {}, shards=2)
    (models_dir() / "empty").mkdir()
    (models_dir() / "broken").mkdir()
    (models_dir() / "broken" / "model.safetensors.index.json").write_text("{")
    write_folder(models_dir(), weights)  # a file of this name beside others keeps it
    found = {entry.name: entry.description for entry in catalog.available()}
    assert found.keys() == {"broken", "goose.7", "model"}
    assert found["broken"] == "damaged"
    assert found["goose.7"].endswith(" MB")
    for name in ("goose.7", "model"):
        assert checkpoints.open(catalog.find(name)).name == name
    other = write_folder(tmp_path / "elsewhere", weights)
    assert checkpoints.open(catalog.find(other)).name == "elsewhere"
    with pytest.raises(CheckpointError, match="There is no model"):
        catalog.find(models_dir() / "empty")


def test_a_model_is_named_so_that_it_is_found_from_any_folder(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.write_bytes(b"x")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "m.pth").write_bytes(b"x")
    assert catalog.lasting("embedded") == "embedded"
    assert catalog.lasting("m.pth") == str(tmp_path / "here" / "m.pth")
    for unknown in ("nothing", "~nobody-at-all/m.pth", "a\0b", "x" * 5000):
        assert catalog.lasting(unknown) == unknown
