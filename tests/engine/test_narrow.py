"""What weights of 16, 8 and 4 bits cost in bits per byte of text: nothing, next to it, little."""

from pathlib import Path

import numpy as np
import pytest
import torch

import rwkv_chat
from rwkv_chat import paths
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.engine.native import NativeBackend
from rwkv_chat.engine.select import load_model
from rwkv_chat.training.measure import bits_per_byte
from tests.seeded import official, random_weights, shared_model, small_spec

PROSE = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
CHAT = "\n\n".join(
    line.replace("U:", "User:").replace("A:", "Assistant:")
    for line in (Path(rwkv_chat.__file__).parent / "training/text/dialogues/f3_01.txt")
    .read_text(encoding="utf-8")
    .splitlines()
    if line.startswith(("U:", "A:"))
)[:5000]
BOUNDS = {"bf16": 0.001, "q8": 0.01, "q4": 0.05}


every_type = pytest.mark.parametrize("weights", BOUNDS)


def check_loss(path: Path, text: str, weights: str) -> None:
    exact, narrow = (
        bits_per_byte(load_model(path, kind, threads=1), [[text]]) for kind in ("f32", weights)
    )
    assert 0 < exact < 8
    assert exact != narrow
    assert abs(narrow - exact) < BOUNDS[weights]


@every_type
@pytest.mark.parametrize("text", [PROSE, CHAT], ids=["prose", "chat"])
def test_the_embedded_model_loses_little(text: str, weights: str) -> None:
    check_loss(paths.bundled("model.safetensors"), text, weights)


def test_a_step_reads_a_byte_for_each_weight_and_its_share_of_a_scale() -> None:
    model = load_model(paths.bundled("model.safetensors"), "q8", threads=1)
    assert isinstance(model.backend, NativeBackend)
    spec = model.spec
    value = spec.n_layer * spec.n_ffn * (spec.n_embd + 4 * 2)  # two groups to a row
    whole = model.backend.weight_bytes_per_step(0.0)
    assert whole - model.backend.weight_bytes_per_step(1.0) == value
    rows = spec.vocab_size + spec.n_layer * (4 * spec.n_embd + 2 * spec.n_ffn)
    assert rows * (spec.n_embd + 4 * 2) < whole < 1.3 * rows * (spec.n_embd + 4 * 2)


@every_type
def test_a_trained_model_loses_little(weights: str) -> None:
    check_loss(shared_model("tiny-rwkv-7v0-834K.pth"), PROSE, weights)


@pytest.mark.parametrize(("weights", "bound"), [("q8", 2e-3), ("q4", 0.1)])
def test_the_next_token_is_nearly_as_probable_in_a_random_model(
    tmp_path: Path, weights: str, bound: float
) -> None:
    """The mean divergence (KL, in nats) from what f32 says, token by token."""
    spec = small_spec(n_layer=3, n_embd=128, head_size=64, n_ffn=512, vocab_size=300)
    torch.save(official(random_weights(spec)), tmp_path / "m.pth")
    ids = np.random.default_rng(1).integers(0, 300, 40).tolist()
    logs = []
    for kind in ("f32", weights):
        backend = NativeBackend(spec, open_model(tmp_path / "m.pth", kind).tensors, 1)
        rows = [backend.forward(ids[: n + 1], None)[0].astype(np.float64) for n in range(len(ids))]
        logs.append([row - np.logaddexp.reduce(row) for row in rows])
    exact, narrow = np.array(logs[0]), np.array(logs[1])
    divergence = (np.exp(exact) * (exact - narrow)).sum(axis=1).mean()
    assert 0 < divergence < bound
