"""From a file to a model: vocabulary, memory, backend."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_chat.engine import memory
from rwkv_chat.engine.select import load_model
from rwkv_chat.errors import MemoryLimitError, TokenizerError, UsageError
from tests.seeded import official, random_weights, small_spec
from tests.tiny import load, model_file


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A model whose number of tokens says nothing."""
    path = tmp_path / "odd.pth"
    torch.save(official(random_weights(small_spec(vocab_size=300))), path)
    return path


def test_an_unknown_vocabulary_is_asked_for(odd: Path) -> None:
    with pytest.raises(TokenizerError, match=r"300 tokens.*vocab\.txt"):
        load_model(odd)


def test_a_vocabulary_beside_the_model_is_used(odd: Path) -> None:
    lines = [f"{byte + 1} {bytes([byte])!r} 1" for byte in range(256)]
    odd.with_name("vocab.txt").write_text("\n".join([*lines, "257 'Hello' 5"]) + "\n")
    assert load_model(odd).tokenizer.encode("Hello!") == [257, 34]


def test_a_vocabulary_can_be_named(odd: Path, tmp_path: Path) -> None:
    table = {str(i): chr(0x4E00 + i) for i in range(300)}
    file = tmp_path / "words.json"
    file.write_text(json.dumps(table), encoding="utf-16")
    model = load_model(odd, tokenizer=file)
    assert (model.tokenizer.name, model.tokenizer.end) == ("characters", None)
    assert model.tokenizer.encode("一丁") == [0, 1]
    table["300"] = "x"
    file.write_text(json.dumps(table))
    with pytest.raises(TokenizerError, match="301 ids and the model 300 rows"):
        load_model(odd, tokenizer=file)


def test_a_model_without_its_vocabulary_is_refused_before_it_is_converted(
    odd: Path, home: Path
) -> None:
    with pytest.raises(TokenizerError):
        load_model(odd)
    assert not (home / "cache").exists()


def test_the_environment_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model(model_file()).backend.name.startswith("native")
    monkeypatch.setenv("RWKV_CHAT_BACKEND", "reference")
    assert load_model(model_file()).backend.name.startswith("reference")
    monkeypatch.setenv("RWKV_CHAT_BACKEND", "quantum")
    with pytest.raises(UsageError, match=r"quantum.*native, reference"):
        load_model(model_file())


@pytest.mark.parametrize("weights", ["q8", "q4"])
@pytest.mark.parametrize("generation", ["4", "5.0", "5.1", "5.2", "6", "7", "7a"])
def test_both_backends_read_integers(
    monkeypatch: pytest.MonkeyPatch, generation: str, weights: str
) -> None:
    fast = load(weights, generation)
    monkeypatch.setenv("RWKV_CHAT_BACKEND", "reference")
    slow = load(weights, generation)
    assert slow.fingerprint == fast.fingerprint
    logits, _ = slow.forward(list(b"Hello"), None)
    # Only the kernels round activations; the largest logit is an outlier.
    found, _ = fast.forward(list(b"Hello"), None)
    assert np.abs(found - logits).max() < 6e-3 * np.abs(logits).max()


def test_a_model_that_does_not_fit_is_refused_before_it_is_converted(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 100 << 20)
    with pytest.raises(MemoryLimitError, match=r"tiny needs 0\.1 GiB.*0\.1 GiB are free"):
        load_model(model_file())
    assert not (home / "cache").exists()


def test_memory_is_what_the_system_and_the_group_leave(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert memory.available_bytes(tmp_path) is None
    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert memory.available_bytes(tmp_path) == 5000 * 1024
    write("sys/fs/cgroup/memory.max", "3000000\n")
    write("sys/fs/cgroup/memory.current", "2500000\n")
    write("sys/fs/cgroup/memory.stat", "anon 500000\nfile 2000000\n")
    assert memory.available_bytes(tmp_path) == 2_500_000
    write("sys/fs/cgroup/memory.max", "max\n")
    assert memory.available_bytes(tmp_path) == 5000 * 1024
