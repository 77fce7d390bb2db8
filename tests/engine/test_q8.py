"""What 8-bit weights cost: next to nothing, in bits per byte of text."""

from pathlib import Path

import pytest

from rwkv_chat import paths
from rwkv_chat.engine.native import NativeBackend
from rwkv_chat.engine.select import load_model
from rwkv_chat.training.measure import bits_per_byte
from tests.seeded import shared_model

PROSE = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
CHAT = "User: What is a volcano?\n\nAssistant: A mountain that can throw out fire.\n\n" * 9
BOUND = 0.01


def bits_of(path: Path, text: str) -> tuple[float, float]:
    f32, q8 = (
        bits_per_byte(load_model(path, weights, threads=1), [[text]]) for weights in ("f32", "q8")
    )
    assert 0 < f32 < 8
    return f32, q8


@pytest.mark.parametrize("text", [PROSE, CHAT], ids=["prose", "chat"])
def test_the_embedded_model_loses_next_to_nothing(text: str) -> None:
    f32, q8 = bits_of(paths.bundled("model.safetensors"), text)
    assert f32 != q8
    assert abs(q8 - f32) < BOUND


def test_a_step_reads_a_byte_for_each_weight_and_its_share_of_a_scale() -> None:
    model = load_model(paths.bundled("model.safetensors"), "q8", threads=1)
    assert isinstance(model.backend, NativeBackend)
    spec = model.spec
    value = spec.n_layer * spec.n_ffn * (spec.n_embd + 4 * 2)  # two groups to a row
    whole = model.backend.weight_bytes_per_step(0.0)
    assert whole - model.backend.weight_bytes_per_step(1.0) == value
    rows = spec.vocab_size + spec.n_layer * (4 * spec.n_embd + 2 * spec.n_ffn)
    assert rows * (spec.n_embd + 4 * 2) < whole < 1.3 * rows * (spec.n_embd + 4 * 2)


def test_a_trained_model_loses_next_to_nothing() -> None:
    f32, q8 = bits_of(shared_model("tiny-rwkv-7v0-834K.pth"), PROSE)
    assert f32 != q8
    assert abs(q8 - f32) < BOUND
