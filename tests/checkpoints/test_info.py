"""The door: what a file is, what it needs and how big it gets, from its headers alone."""

from pathlib import Path

import pytest
import torch

from rwkv_chat import checkpoints
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.paths import cache_dir
from rwkv_chat.weights import WEIGHTS
from tests.seeded import official, random_weights, small_spec, spec_of


def test_the_door_reads_no_weights(tmp_path: Path) -> None:
    spec = small_spec(vocab_size=65536)
    weights = official(random_weights(spec))
    weights["copy_mask"] = torch.ones(2, 2)  # without use, but training writes it
    path = tmp_path / "rwkv7-g1h-tiny-20260101-ctx4096.pth"
    torch.save(weights, path)
    info = checkpoints.open(path)
    assert info.spec == spec
    assert (info.format, info.dtype, info.tokenizer, info.template) == ("pth", "F32", "world", "g1")
    assert info.ignored == ()
    assert info.file_bytes == path.stat().st_size
    assert info.state_bytes == 2 * (32 + 32 * 16 + 32) * 4
    assert info.weights_bytes["f32"] == 4 * spec.n_parameters
    assert not cache_dir().exists()
    made = open_model(path, "bf16")
    assert sum(array.nbytes for array in made.tensors.values()) == info.weights_bytes["bf16"]
    assert checkpoints.open(made.path).format == "rwkv-chat"
    for name, template in {"RWKV-x070-World-0.1B.pth": "chat", "big1.pth": "chat"}.items():
        path.rename(tmp_path / name)
        path = tmp_path / name
        assert checkpoints.open(path).template == template


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("generation", ["1", "4", "6", "7a"])
def test_what_a_model_takes_is_what_was_said(generation: str, weights: str, tmp_path: Path) -> None:
    torch.save(official(random_weights(spec_of(generation))), tmp_path / "m.pth")
    info = checkpoints.open(tmp_path / "m.pth")
    made = open_model(tmp_path / "m.pth", weights)
    held = sum(array.nbytes for array in made.tensors.values())
    assert info.weights_bytes[weights] == held
    copy = info.weights_bytes["f32"] if generation == "1" else 0  # the reference makes one
    assert info.memory_bytes[weights] == held + info.state_bytes + copy
    assert any("slowly" in remark for remark in info.remarks) == (generation == "1")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save(official(random_weights(small_spec(vocab_size=300))), path)
    (need,) = checkpoints.open(path).needs
    assert need.startswith("Put the vocabulary")
    (tmp_path / "vocab.txt").write_text("")
    info = checkpoints.open(path)
    assert (info.needs, info.vocabulary) == ((), tmp_path / "vocab.txt")
    torch.save(official(random_weights(small_spec(vocab_size=256))), path)
    info = checkpoints.open(path)
    assert (info.tokenizer, info.needs, info.vocabulary) == ("bytes", (), None)
