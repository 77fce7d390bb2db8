"""A start state learns a manner, and is the same state for us and for the official package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_chat import paths
from rwkv_chat.chat import templates
from rwkv_chat.engine.model import Model, State
from rwkv_chat.engine.select import load_model
from rwkv_chat.errors import EngineError, MemoryLimitError, UnsupportedModelError, UsageError
from rwkv_chat.training import tune as tuning
from rwkv_chat.training.examples import Parts, Row, cut, divide, read
from rwkv_chat.training.operator import recur_from, recur_from_slowly
from rwkv_chat.training.tune import (
    Plan,
    check,
    measure,
    open_frozen,
    recurrence_for,
    start_state,
    tune,
    write_time_state,
)
from tests.seeded import official, random_weights, shared_model, small_spec
from tests.tiny import model_file

DIALOGUES = Path(__file__).parents[1] / "data" / "pirate.txt"
EMBEDDED = paths.bundled("model.safetensors")
QUESTION = "User: What is a cat?\n\nAssistant:"
IDS = [7, 250, 31, 4, 4, 99, 120, 8]
ORACLE = """
import os, sys
os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")
import numpy as np, torch
from rwkv.model import RWKV
folder = sys.argv[1]
model = RWKV(model=folder + "/m", strategy="cpu fp32")
tuned = torch.load(folder + "/m.time_state.pth", weights_only=True)
layers = len(tuned)
state = [None] * (3 * layers)
for layer in range(layers):
    one = tuned[f"blocks.{layer}.att.time_state"]
    width = one.shape[0] * one.shape[1]
    state[3 * layer] = torch.zeros(width)
    state[3 * layer + 1] = one.float()
    state[3 * layer + 2] = torch.zeros(width)
steps = []
for token in [7, 250, 31, 4, 4, 99, 120, 8]:
    logits, state = model.forward([token], state)
    steps.append(logits.numpy())
np.save(folder + "/logits.npy", np.stack(steps))
"""


def ignore(step: int, loss: float, watched: float | None) -> None:
    """A listener that does not care."""


def beginning(model: Model, state: State | None) -> str:
    """The first of what the model most likely answers."""
    logits, state = model.forward(model.tokenizer.encode(QUESTION), state)
    said: list[int] = []
    for _ in range(4):
        said.append(int(logits.argmax()))
        logits, state = model.forward(said[-1:], state)
    return model.tokenizer.decode(said)


def random_rows(count: int, length: int, seed: int = 1) -> tuple[Row, ...]:
    numbers = np.random.default_rng(seed)
    ids = numbers.integers(1, 200, (count, length + 1)).tolist()
    return tuple(Row(tuple(row), (False, *[True] * length)) for row in ids)


@pytest.mark.skipif(shutil.which("g++") is None, reason="in time only with the compiled operator")
def test_the_embedded_model_learns_a_manner_that_it_is_judged_by_elsewhere() -> None:
    plan = Plan(steps=60)
    model = load_model(EMBEDDED, "bf16", threads=1)
    rows = [
        cut(each, model.tokenizer, templates.get("chat"), plan.length) for each in read(DIALOGUES)
    ]
    parts = divide(rows, plan.seed)
    assert (len(parts.learnt), len(parts.watched), len(parts.held_out)) == (34, 4, 4)
    frozen = open_frozen(EMBEDDED, "bf16", plan, recur_from)
    told = []
    tuned = tune(frozen, parts, plan, lambda *each: told.append(each))
    before = measure(frozen, None, parts.held_out, plan)
    after = measure(frozen, tuned.states, parts.held_out, plan)
    assert after < 0.75 * before
    assert [step for step, *_ in told] == list(range(61))
    watched = {step: loss for step, _, loss in told if loss is not None}
    assert tuned.kept == min(watched, key=watched.__getitem__)
    assert all(not parameter.requires_grad for parameter in frozen.parameters())

    start = start_state(model, tuned.states)
    assert not beginning(model, None).startswith(" Arr")
    assert beginning(model, start).startswith(" Arr")


def test_a_start_state_is_one_that_has_read_nothing(tmp_path: Path) -> None:
    model = load_model(model_file(), "f32", threads=1)
    states = np.random.default_rng(1).standard_normal((2, 2, 16, 16)).astype(np.float32)
    start_state(model, states).save(tmp_path / "start.state")
    start = model.load_state(tmp_path / "start.state")
    assert start.tokens == 0
    assert np.array_equal(start.logits, model.forward([0], start)[0])
    layers = start.data.reshape(2, -1)
    assert np.array_equal(layers[:, 32:-32].reshape(states.shape), states)
    assert not layers[:, :32].any()
    assert not layers[:, -32:].any()


def test_the_frozen_model_has_the_epsilon_that_was_chosen() -> None:
    model = load_model(model_file(), "f32", threads=1, group_norm_eps=0.1)
    expected = model.forward(IDS)[0]
    zeros = torch.zeros(2, 2, 16, 16)
    for epsilon, agrees in ((0.1, True), (None, False)):
        frozen = open_frozen(model_file(), "f32", Plan(), group_norm_eps=epsilon)
        with torch.no_grad():
            logits = frozen(torch.tensor([IDS]), zeros.unbind())[0, -1].numpy()
        close = np.abs(logits - expected).max() < 2e-4 * np.abs(expected).max()
        assert close == agrees


@pytest.mark.parametrize(
    ("weights", "bound"), [("f32", 2e-4), ("bf16", 5e-3), ("q8", 0.05), ("q4", 0.05)]
)
def test_the_frozen_model_and_the_engine_agree_about_a_start_state(
    weights: str, bound: float, tmp_path: Path
) -> None:
    """Heads of 16 too, and in both forms of the file. Those of q8 and q4 round inputs."""
    model, frozen = (
        load_model(model_file(), weights, threads=1),
        open_frozen(model_file(), weights, Plan()),
    )
    states = np.random.default_rng(1).standard_normal((2, 2, 16, 16)).astype(np.float32)
    expected = model.forward(IDS, start_state(model, states))[0]
    with torch.no_grad():
        logits = frozen(torch.tensor([IDS]), torch.from_numpy(states).unbind())[0, -1].numpy()
    assert np.abs(logits - expected).max() < bound * np.abs(expected).max()
    write_time_state(tmp_path / "a.pth", states)
    begun = model.with_start(tmp_path / "a.pth")
    assert np.array_equal(begun.forward(IDS, None)[0], expected)


@pytest.mark.parametrize("name", ["seeded", "tiny-rwkv-7v0-834K.pth"])
def test_the_official_package_gives_the_same_logits_from_a_time_state(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("rwkv")
    path = tmp_path / "m.pth"
    if name == "seeded":
        spec = small_spec(n_embd=128, head_size=64, vocab_size=256)
        torch.save(official(random_weights(spec)), path)
    else:
        shutil.copyfile(shared_model(name), path)
    model = load_model(path, "f32", threads=1)
    spec = model.spec
    shape = (spec.n_layer, spec.n_head, spec.head_size, spec.head_size)
    states = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    write_time_state(tmp_path / "m.time_state.pth", states)
    assert (tmp_path / "m.time_state.pth").stat().st_mode & 0o077 == 0
    subprocess.run(
        [sys.executable, "-c", ORACLE, str(tmp_path)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    expected = np.load(tmp_path / "logits.npy")
    state = start_state(model, states)
    for token, row in zip(IDS, expected, strict=True):
        logits, state = model.forward([token], state)
        assert np.abs(logits - row).max() < 1e-4 * max(1.0, np.abs(row).max())


def test_the_loss_is_the_mean_of_what_counts_however_it_is_batched() -> None:
    frozen = open_frozen(model_file(), "f32", Plan())
    rows = [
        Row(row.ids[: 4 + i], (False, *[i % 3 != j % 3 for j in range(3 + i)]))
        for i, row in enumerate(random_rows(5, 9))
    ]
    nats = []
    for row in rows:
        with torch.no_grad():
            logits = frozen(torch.tensor([row.ids[:-1]]))[0].log_softmax(-1)
        nats += [
            -logits[i, row.ids[i + 1]].item() for i in range(len(logits)) if row.counted[i + 1]
        ]
    for batch in (1, 2, 5):
        assert measure(frozen, None, rows, Plan(batch=batch)) == pytest.approx(np.mean(nats), 1e-4)


def test_the_same_seed_gives_the_same_state_and_another_one_another() -> None:
    frozen = open_frozen(model_file(), "f32", Plan())
    parts = Parts(random_rows(6, 8), (), random_rows(2, 8, seed=2))
    plans = [Plan(steps=3, batch=2, seed=seed) for seed in (1, 1, 2)]
    one, same, other = (tune(frozen, parts, plan, ignore).states for plan in plans)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_an_interruption_keeps_what_there_is() -> None:
    frozen = open_frozen(model_file(), "f32", Plan())
    parts = Parts(random_rows(6, 8), (), random_rows(2, 8, seed=2))

    def interrupt(step: int, loss: float, watched: float | None) -> None:
        if step == 4:
            raise KeyboardInterrupt

    tuned = tune(frozen, parts, Plan(steps=10, batch=2), interrupt)
    assert isinstance(tuned.interruption, KeyboardInterrupt)
    assert (tuned.steps, tuned.kept) == (4, 4)
    assert tuned.states.any()


def test_a_state_that_helps_nothing_is_not_kept() -> None:
    """What is learnt contradicts what is watched, so the empty state stays the best."""
    frozen = open_frozen(model_file(), "f32", Plan())
    learnt = (Row((1, 5) * 5, (False, *[True] * 9)),)
    watched = (Row((1, 9) * 5, (False, *[True] * 9)),)
    tuned = tune(frozen, Parts(learnt, watched, watched), Plan(steps=8, batch=1), ignore)
    assert (tuned.kept, tuned.steps) == (0, 8)
    assert not tuned.states.any()


def test_a_loss_that_is_no_number_ends_it_with_a_sentence() -> None:
    frozen = open_frozen(model_file(), "f32", Plan())
    frozen.head.weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="--rate"):
        tune(frozen, Parts(random_rows(2, 4), (), random_rows(1, 4)), Plan(steps=2), ignore)


@pytest.mark.parametrize("generation", ["4", "5.2", "6", "7a"])
def test_other_generations_are_refused_by_name(generation: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"tiny{generation} is an RWKV-{generation} "):
        check(model_file(generation))


def test_too_little_memory_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning.memory, "available_bytes", lambda: 200 << 20)
    assert open_frozen(model_file(), "f32", Plan()).spec.generation == "7"
    with pytest.raises(MemoryLimitError, match="Tuning tiny"):
        open_frozen(model_file(), "f32", Plan(batch=1000))


def test_the_slow_loop_has_the_gradients_of_the_compiled_operator() -> None:
    spec = check(EMBEDDED)
    fast, why = recurrence_for(spec)
    if why:
        pytest.skip(why)
    shape = (spec.n_layer, spec.n_head, spec.head_size, spec.head_size)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for recurrence in (fast, recur_from_slowly):
        frozen = open_frozen(EMBEDDED, "bf16", Plan(), recurrence)
        states = start.clone().requires_grad_()
        tuning._loss_of(frozen, states, random_rows(3, 20)).backward()
        gradients.append(states.grad)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[1].abs().max()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UsageError("Training needs a C++ compiler."), "needs a C++ compiler."),
        (EngineError("It does not compile.\nmain.cpp: error"), "It does not compile."),
    ],
)
def test_without_a_compiled_operator_it_is_slow_and_says_why(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: torch.device) -> None:
        raise error

    monkeypatch.setattr(tuning, "kernels_for", fail)
    recurrence, why = recurrence_for(check(EMBEDDED))
    assert recurrence is recur_from_slowly
    assert why.startswith("This will be slow")
    assert why.endswith(sentence)


def test_heads_of_another_size_are_slow() -> None:
    recurrence, why = recurrence_for(check(model_file()))
    assert recurrence is recur_from_slowly
    assert "heads have 16 channels" in why
