"""Trained start states: which way they lie, and whom they belong to."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from rwkv_chat import checkpoints
from rwkv_chat.checkpoints.named import convert_named
from rwkv_chat.checkpoints.startstate import read_start
from rwkv_chat.commands.memory import peak_memory, reset_peak_memory
from rwkv_chat.engine.select import load_model
from rwkv_chat.errors import SnapshotError, UnsupportedModelError
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import StateLayout
from tests.checkpoints.test_mutations import COUNT, mutate, structure
from tests.models.oracle import official_logits
from tests.seeded import official, random_weights, small_spec, spec_of


def tuned(spec: ModelSpec, seed: int = 1) -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    shape = (spec.n_head, spec.head_size, spec.head_size)
    return {
        f"blocks.{layer}.att.time_state": torch.randn(shape, generator=numbers)
        for layer in range(spec.n_layer)
    }


@pytest.mark.parametrize("generation", ["5.0", "5.2", "6", "7"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_matrices_lie_as_the_state_has_them(
    tmp_path: Path, generation: str, prefix: str
) -> None:
    spec = small_spec() if generation == "7" else spec_of(generation, n_layer=3)
    states = tuned(spec)
    torch.save({prefix + n: t for n, t in states.items()}, tmp_path / "s.pth")
    found = read_start(tmp_path / "s.pth", spec).reshape(spec.n_layer, -1)
    width = spec.n_embd
    for layer, matrix in enumerate(states.values()):
        wanted = matrix if generation == "7" else matrix.transpose(1, 2)
        assert np.array_equal(found[layer, width:-width], wanted.flatten().numpy())
        assert not found[layer, :width].any()
        assert not found[layer, -width:].any()
    assert found.size == StateLayout.of(spec).size


def test_the_official_package_begins_in_the_same_way(tmp_path: Path) -> None:
    ids, jobs, ours = [72, 101, 108, 108, 111], [], []
    for generation in ("5.2", "6"):
        spec = spec_of(generation, n_embd=128, head_size=64, n_ffn=448, vocab_size=256)
        weights, states = official(random_weights(spec)), tuned(spec)
        name = f"m{generation[0]}"
        torch.save(weights, tmp_path / f"{name}.pth")
        torch.save(states, tmp_path / f"{name}-state.pth")
        started = load_model(tmp_path / f"{name}.pth").with_start(tmp_path / f"{name}-state.pth")
        ours.append(started.forward(ids)[0])
        # The package takes states that are merged into the model (and needs a decay after ln_x).
        merged = dict(sorted({**weights, **states}.items(), key=lambda item: "ln_x" not in item[0]))
        torch.save(merged, tmp_path / f"{name}-merged.pth")
        jobs.append((tmp_path / f"{name}-merged.pth", ids))
    for found, theirs in zip(ours, official_logits(jobs), strict=True):
        np.testing.assert_allclose(found, theirs["steps"][-1], atol=2e-4)


@pytest.mark.parametrize("generation", ["5.2", "6", "7"])
def test_a_state_that_was_merged_into_a_model_is_where_it_begins(
    tmp_path: Path, generation: str
) -> None:
    spec = small_spec() if generation == "7" else spec_of(generation, vocab_size=256)
    spec = replace(spec, vocab_size=256)
    weights, states = official(random_weights(spec)), tuned(spec)
    torch.save(weights, tmp_path / "plain.pth")
    torch.save(states, tmp_path / "state.pth")
    torch.save({**weights, **states}, tmp_path / "merged.pth")
    wanted = load_model(tmp_path / "plain.pth").with_start(tmp_path / "state.pth")
    info = checkpoints.open(tmp_path / "merged.pth")
    assert (info.spec, info.has_start, info.ignored) == (spec, True, ())
    assert "start state" in info.remarks[0]
    for _ in range(2):  # converted, and from the cache
        merged = load_model(tmp_path / "merged.pth")
        assert np.array_equal(merged.forward([1, 2])[0], wanted.forward([1, 2])[0])
        assert merged.fingerprint == wanted.fingerprint
    other = merged.with_start(tmp_path / "merged.pth")
    assert np.array_equal(other.forward([1, 2])[0], wanted.forward([1, 2])[0])
    with pytest.raises(UnsupportedModelError, match="a converted model cannot keep"):
        convert_named(tmp_path / "merged.pth", "f32", "new")


def test_a_merged_state_that_cannot_be_used_is_not_dropped(tmp_path: Path) -> None:
    spec = small_spec(vocab_size=256)
    weights, states = official(random_weights(spec)), tuned(spec)
    whole = {name: tensor.contiguous() for name, tensor in {**weights, **states}.items()}
    safetensors.torch.save_file(whole, tmp_path / "m.safetensors")
    with pytest.raises(UnsupportedModelError, match="which way its matrices lie"):
        checkpoints.open(tmp_path / "m.safetensors")
    states.popitem()
    torch.save({**weights, **states}, tmp_path / "m.pth")
    with pytest.raises(SnapshotError, match="states for 1 layers"):
        load_model(tmp_path / "m.pth")
    torch.save({**random_weights(spec_of("4")), **states}, tmp_path / "m.pth")
    with pytest.raises(UnsupportedModelError, match="time_state', which RWKV-4 does not have"):
        checkpoints.open(tmp_path / "m.pth")


def test_a_state_that_is_no_model_is_offered_only_where_it_can_be_used(tmp_path: Path) -> None:
    states = tuned(small_spec())
    torch.save(states, tmp_path / "s.pth")
    with pytest.raises(UnsupportedModelError, match=r"with it: rwkv-chat ask .* --state FILE\."):
        checkpoints.open(tmp_path / "s.pth")
    safetensors.torch.save_file(states, tmp_path / "s.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"The \.pth file that it was made from"):
        checkpoints.open(tmp_path / "s.safetensors")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    spec = small_spec()
    path = tmp_path / "s.pth"

    def refused(states: dict[str, torch.Tensor], what: str, model: ModelSpec = spec) -> None:
        torch.save(states, path)
        with pytest.raises(SnapshotError, match=what):
            read_start(path, model)

    good = tuned(spec)
    first = "blocks.0.att.time_state"
    refused({"emb.weight": torch.ones(2)}, "holds no start state")
    refused(good, "2 layers, and the model has 3", small_spec(n_layer=3))
    refused({**good, first: torch.ones(2, 16, 15)}, r"needs \[2, 16, 16\]")
    refused({**good, first: torch.ones(2, 16, 16, dtype=torch.uint8)}, "is U8")
    refused({**good, first: torch.full((2, 16, 16), torch.nan)}, "not finite")
    refused(good, "RWKV-4 has no such", spec_of("4"))
    with pytest.raises(SnapshotError, match="There is no file"):
        read_start(tmp_path / "none.pth", spec)
    safetensors.torch.save_file(good, tmp_path / "s.st")
    with pytest.raises(SnapshotError, match="which way its matrices lie"):
        read_start(tmp_path / "s.st", spec)


def test_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    spec = small_spec(n_embd=16, head_size=8)
    torch.save(tuned(spec), tmp_path / "s.pth")
    data = (tmp_path / "s.pth").read_bytes()
    places, dice = structure(tmp_path / "s.pth", data), random.Random(1)
    path = tmp_path / "bad.pth"
    reset_peak_memory()
    before = peak_memory()
    sentences = []
    for _ in range(COUNT):
        path.unlink(missing_ok=True)
        path.write_bytes(mutate(data, places, dice))
        try:
            assert read_start(path, spec).size == StateLayout.of(spec).size
        except SnapshotError as error:
            sentences.append(str(error))
    assert len(sentences) > COUNT // 4
    assert [s for s in sentences if not (s.endswith(".") and s.isprintable())] == []
    assert peak_memory() - before < 200_000_000
