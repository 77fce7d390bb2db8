"""A small vocabulary's model as one of the whole World vocabulary."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_chat._native import Vocabulary
from rwkv_chat.errors import UsageError
from rwkv_chat.tokenizer.world import world_tokens
from rwkv_chat.training.export import write_official
from rwkv_chat.training.model import Shape, Trainee
from rwkv_chat.training.world import WORLD_ROWS, to_world
from tests.models.oracle import official_logits

KEPT = [b"", *(bytes([byte]) for byte in range(256)), b" the", b"User", b"\n\n", "你".encode()]
TEXT = "User: the 你好 sun\n\n"


def make_model() -> Trainee:
    """A model whose weights are all different from their initial values."""
    torch.manual_seed(3)
    model = Trainee(Shape(2, 64, len(KEPT)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        model.emb.weight.normal_()
    return model


def test_kept_ids_keep_their_logits_in_the_official_package(tmp_path: Path) -> None:
    world = world_tokens()
    model = make_model()
    wide = to_world(model.state_dict(), KEPT, world)
    path = tmp_path / "wide.pth"
    write_official(path, wide, replace(model.shape.spec(), vocab_size=WORLD_ROWS))
    places = [0, *(world.index(token) for token in KEPT[1:])]
    ids = Vocabulary(KEPT).encode(TEXT.encode())
    (logits,) = official_logits([(path, [places[i] for i in ids])], RWKV_V7_ON="1")
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].numpy()
    for form in ("sequence", "steps"):
        got = logits[form]
        assert np.abs(got[:, places] - expected).max() < 1e-4 * np.abs(expected).max()
        others = np.delete(got, places, axis=1)
        assert np.abs(others + 30).max() < 1e-2


def test_a_token_that_is_not_kept_is_the_mean_of_its_pieces() -> None:
    world = world_tokens()
    weights = make_model().state_dict()
    wide = to_world(weights, KEPT, world)
    number = world.index(b"is")
    pieces = [1 + ord("i"), 1 + ord("s")]
    assert torch.allclose(wide["emb.weight"][number], weights["emb.weight"][pieces].mean(0))
    assert wide["emb.weight"].shape == wide["head.weight"].shape == (WORLD_ROWS, 64)


def test_what_cannot_be_widened_is_refused() -> None:
    world = world_tokens()
    weights = make_model().state_dict()
    with pytest.raises(UsageError, match="not in the World"):
        to_world(weights, [*KEPT[:-1], b"no such token at all"], world)
    weights["ln_out.bias"].zero_()
    with pytest.raises(UsageError, match="layer norm"):
        to_world(weights, KEPT, world)
