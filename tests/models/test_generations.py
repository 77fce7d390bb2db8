"""RWKV-4 to 6 and 7a against the official package and against published logits.

The kernels are compared with the package here too, whose models are already computed.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_chat import _native
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.engine.reference import ReferenceBackend
from rwkv_chat.models.base import Reference
from rwkv_chat.models.spec import ModelSpec
from tests.models.oracle import check_kernels, official_logits
from tests.seeded import (
    REFERENCES,
    converted_arrays,
    official,
    random_weights,
    shared_model,
    spec_of,
)

SHAPES = {
    "4": [
        spec_of("4", n_layer=1),
        spec_of("4", n_layer=3, n_embd=40, n_ffn=50),
        spec_of("4", n_embd=128, vocab_size=256, n_ffn=512),
    ],
    **{
        generation: [
            spec_of(generation, n_layer=1),
            spec_of(generation, n_layer=3, n_embd=48, head_size=8, n_ffn=77, vocab_size=70),
            spec_of(generation, n_embd=128, head_size=64, n_ffn=448),
        ]
        for generation in ("5.0", "5.1", "5.2")
    },
    "6": [
        spec_of("6", n_layer=1),
        spec_of("6", n_layer=3, n_embd=48, head_size=8, n_ffn=77, rank_w=3, rank_mix=7),
        spec_of("6", n_embd=128, head_size=64, n_ffn=448, rank_w=64, rank_mix=32),
    ],
    "7a": [
        spec_of("7a", n_layer=1, rank_v=0),
        spec_of("7a", n_layer=3, n_embd=48, head_size=8, n_ffn=77, vocab_size=70),
        spec_of("7a", n_embd=128, head_size=64, n_ffn=512, rank_w=32, rank_g=64),
    ],
}
SHAPES["5.0"] *= 2  # in both forms of the bonus
CASES = [(generation, number) for generation in SHAPES for number in range(len(SHAPES[generation]))]
EXPONENTIAL = {("5.0", 3), ("5.0", 4), ("5.0", 5), ("5.1", 0)}  # these files hold time_first
Logits = dict[tuple[str, int], tuple[Path, dict[str, np.ndarray]]]


def tokens(spec: ModelSpec) -> list[int]:
    return [int(n) for n in np.random.default_rng(5).integers(0, spec.vocab_size, 64)]


def weights_of(case: tuple[str, int]) -> dict[str, torch.Tensor]:
    generation, number = case
    weights = official(random_weights(SHAPES[generation][number], number))
    if case in EXPONENTIAL:
        weights = {name.replace("time_faaaa", "time_first"): t for name, t in weights.items()}
    # The package takes the number of heads from a decay that comes after a group norm.
    return dict(sorted(weights.items(), key=lambda item: "ln_x" not in item[0]))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Logits:
    """What the official package computes for each case, with the file it read."""
    folder = tmp_path_factory.mktemp("oracle")
    jobs = []
    for generation, number in CASES:
        path = folder / f"m{generation.replace('.', '_')}-{number}.pth"
        torch.save(weights_of((generation, number)), path)
        jobs.append((path, tokens(SHAPES[generation][number])))
    first = CASES.index(("7a", 0))  # the package computes either RWKV-7 or the ones before
    results = official_logits(jobs[:first])
    results += official_logits(jobs[first:], RWKV_V7_ON="1", RWKV_DE_VERSION="1")
    return {case: (job[0], found) for case, job, found in zip(CASES, jobs, results, strict=True)}


def stepped(model: Reference, ids: list[int]) -> torch.Tensor:
    rows, state = [], model.new_state()
    for token in ids:
        row, state = model.forward([token], state)
        rows.append(row)
    return torch.cat(rows)


@pytest.mark.parametrize("form", ["sequence", "steps"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_equals_the_official_package(oracle: Logits, case: tuple[str, int], form: str) -> None:
    path, expected = oracle[case]
    loaded = open_model(path, "f32")
    assert loaded.spec == SHAPES[case[0]][case[1]]
    model = REFERENCES[case[0]](loaded.spec, loaded.tensors)
    ids = tokens(loaded.spec)
    if form == "sequence":
        logits, _ = model.forward(ids, model.new_state())
    else:
        logits = stepped(model, ids)
    scale = np.abs(expected[form]).max()
    assert scale > 0.5
    assert np.abs(logits.numpy() - expected[form]).max() <= 1e-4 * scale


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_the_kernels_equal_the_official_package(
    oracle: Logits, case: tuple[str, int], isa: str
) -> None:
    path, expected = oracle[case]
    loaded = open_model(path, "f32")
    check_kernels(loaded, tokens(loaded.spec), expected, isa)


@pytest.mark.parametrize(("name", "eps"), [("4v0-660K", None), ("5v2-730K", 1e-5)])
def test_equals_the_published_logits_of_a_trained_model(name: str, eps: float | None) -> None:
    loaded = open_model(shared_model(f"tiny-rwkv-{name}.pth"), "f32", group_norm_eps=eps)
    backend = ReferenceBackend(loaded.spec, loaded.tensors)
    logits, _ = backend.forward([34, 105, 110], None)
    expected = np.load(shared_model(f"expected-logits-{name}.npy"))
    assert np.abs(logits - expected).max() <= 1e-4


def test_another_epsilon_is_another_model() -> None:
    path = shared_model("tiny-rwkv-5v2-730K.pth")
    official_one, given = open_model(path, "f32"), open_model(path, "f32", group_norm_eps=1e-5)
    assert (official_one.spec.group_norm_eps, given.spec.group_norm_eps) == (64e-5, 1e-5)
    assert official_one.fingerprint != given.fingerprint
    logits, _ = ReferenceBackend(official_one.spec, official_one.tensors).forward(
        [34, 105, 110], None
    )
    assert np.abs(logits - np.load(shared_model("expected-logits-5v2-730K.npy"))).max() > 0.5


@pytest.mark.parametrize("generation", SHAPES)
def test_the_state_carries_all_that_was_read(generation: str) -> None:
    narrow = {"n_layer": 3, "n_embd": 24, "head_size": 8}
    spec = spec_of(generation, **narrow, **({} if generation == "7a" else {"n_att": 40}))
    model = REFERENCES[generation](spec, converted_arrays(spec), torch.float64)
    ids = tokens(spec)[:12]
    whole, end = model.forward(ids, model.new_state())
    _, middle = model.forward(ids[:5], model.new_state())
    before = middle.clone()
    rest, end_again = model.forward(ids[5:], middle)
    assert torch.equal(middle, before)
    assert torch.allclose(whole[5:], rest, atol=1e-12, rtol=0)
    assert torch.allclose(end, end_again, atol=1e-12, rtol=1e-12)
    assert torch.allclose(whole, stepped(model, ids), atol=1e-12, rtol=0)
    fresh, _ = model.forward(ids[5:], model.new_state())
    assert (fresh - rest).abs().max() > 1e-2


def test_large_keys_do_not_overflow_in_rwkv_4() -> None:
    spec = spec_of("4")
    arrays = converted_arrays(spec)
    for layer in range(spec.n_layer):
        arrays[f"blocks.{layer}.att.key.weight"] = arrays[f"blocks.{layer}.att.key.weight"] * 300
    logits, state = ReferenceBackend(spec, arrays).forward(tokens(spec), None)
    assert np.isfinite(logits).all()
    assert np.isfinite(state).all()
