"""Models of every generation: the same conversations, on the kernels and on the reference."""

from pathlib import Path

import numpy as np
import pytest

from rwkv_chat.chat.options import Options
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.tree import Conversation
from rwkv_chat.engine import native, select
from rwkv_chat.engine.model import Model
from rwkv_chat.engine.select import load_model
from rwkv_chat.errors import EngineError, SnapshotError, UsageError
from rwkv_chat.models.generations import GENERATIONS, NATIVE_GENERATIONS
from tests.tiny import Desk, load, model_file

# Of the parts that only some models have, all together or none.
ENGINES = [
    (generation, backend)
    for generation in sorted(name for name in GENERATIONS if name.count("+") != 1)
    for backend in ("native", "reference")
    if backend == "reference" or generation in NATIVE_GENERATIONS
]
LENGTH = 16
OPTIONS = Options(Sampling(top_p=0.9, seed=11), template="chat", max_tokens=LENGTH)


@pytest.fixture(params=ENGINES, ids="-".join)
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Model:
    generation, backend = request.param
    monkeypatch.setenv("RWKV_CHAT_BACKEND", backend)
    return load(generation=generation)


def ids(conversation: Conversation) -> list[tuple[int, ...]]:
    return [turn.ids for turn in conversation.path()]


@pytest.mark.parametrize("generation", sorted(NATIVE_GENERATIONS))
def test_the_kernels_run_what_they_know(generation: str) -> None:
    model = load(generation=generation)
    assert model.backend.name.startswith("native")
    assert model.spec.generation == generation
    assert model.description.startswith(f"RWKV-{generation} ")


def test_the_reference_runs_what_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (native, select):
        monkeypatch.setattr(module, "NATIVE_GENERATIONS", frozenset({"7"}))
    model = load(generation="6")
    assert model.backend.name == "reference, torch, as there are no kernels for RWKV-6"
    assert load().backend.name.startswith("native")
    monkeypatch.setenv("RWKV_CHAT_BACKEND", "native")
    with pytest.raises(EngineError, match=r"There are no kernels for RWKV-6\."):
        load(generation="6")


def test_both_engines_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for generation in sorted(NATIVE_GENERATIONS):
        results = []
        for backend in ("native", "reference"):
            monkeypatch.setenv("RWKV_CHAT_BACKEND", backend)
            results.append(load(generation=generation).forward([1, 2, 3]))
        (logits, state), (other_logits, other_state) = results
        np.testing.assert_allclose(logits, other_logits, atol=1e-4)
        np.testing.assert_allclose(state.data, other_state.data, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("snapshots", ["kept", "lost"])
def test_a_conversation_goes_on_after_a_restart(
    model: Model, tmp_path: Path, snapshots: str
) -> None:
    desk = Desk(tmp_path / "whole", model, OPTIONS)
    first = desk.ask("What is a river?")
    whole = desk.ask("And a lake?", first.id)
    desk.close()
    assert len(whole.path()[-1].ids) == len(b"Assistant:") + LENGTH

    desk = Desk(tmp_path / "cut", model, OPTIONS)
    conversation = desk.ask("What is a river?").id
    desk.session.configure(conversation, max_tokens=5)
    desk.ask("And a lake?", conversation)
    desk.close()
    files = list((tmp_path / "cut" / "snapshots").glob("*.state"))
    assert files
    if snapshots == "lost":
        for file in files:
            file.unlink()
    desk = Desk(tmp_path / "cut", model, OPTIONS)
    again = desk.go_on(conversation, LENGTH - 5)
    desk.close()
    assert desk.failures == []
    assert ids(again) == ids(whole)


def test_a_branch_starts_from_the_kept_state(model: Model, tmp_path: Path) -> None:
    desk = Desk(tmp_path, model, OPTIONS)
    conversation = desk.ask("What is a river?")
    answer = conversation.path()[-1]
    desk.session.regenerate(conversation.id, answer.id)
    desk.wait()
    other = desk.session.load(conversation.id).path()[-1]
    assert other.parent == answer.parent
    assert other.ids != answer.ids
    fork = desk.session.fork(conversation.id, answer.id)
    assert desk.ask("And a lake?", fork.id).path()[1].ids == answer.ids
    desk.close()
    assert desk.failures == []


def test_a_saved_state_comes_back_to_the_bit(model: Model, tmp_path: Path) -> None:
    logits, state = model.forward([1, 2, 3])
    state.save(tmp_path / "s.state")
    back = model.load_state(tmp_path / "s.state")
    np.testing.assert_array_equal(back.data, state.data)
    np.testing.assert_array_equal(back.logits, logits)
    np.testing.assert_array_equal(model.forward([4], back)[0], model.forward([1, 2, 3, 4])[0])
    other = load(generation="5.2" if model.spec.generation == "7" else "7")
    with pytest.raises(SnapshotError, match=r"different weights"):
        other.load_state(tmp_path / "s.state")


def test_no_split_of_the_ids_matters(model: Model) -> None:
    ids = [int(n) for n in np.random.default_rng(3).integers(0, 256, 45)]
    logits, whole = model.forward(ids)
    assert np.isfinite(logits).all()
    for cuts in ((1,), (13, 14, 15), (14, 21, 22, 44)):
        state = None
        for start, end in zip((0, *cuts), (*cuts, len(ids)), strict=True):
            logits, state = model.forward(ids[start:end], state)
        assert state is not None
        np.testing.assert_array_equal(state.data, whole.data)
        np.testing.assert_array_equal(logits, whole.logits)


def test_a_state_of_foreign_ids_is_refused() -> None:
    backend = load(generation="1").backend
    _, data = backend.forward([1, 2, 3], None)
    start = backend.layout.n_layer * backend.layout.layer_size
    for place, value in ((0, 256), (1, -2), (1, -1), (2, 0.5), (3, -0.5), (2, np.nan)):
        wrong = data.copy()
        wrong[start + place] = value
        with pytest.raises(UsageError, match="remembers token ids that"):
            backend.forward([4], wrong)


def test_the_limit_of_a_memory_is_told() -> None:
    assert load(generation="1").description.endswith(
        "; remembers at most 14 tokens; whenever they are full, all but the last 7 are forgotten"
    )
    assert "remembers" not in load(generation="2+ffnPre+head_qk").description


def test_batches_equal_single_steps(model: Model) -> None:
    _, some = model.forward([1, 2, 3])
    logits, states = model.forward_batch([4, 5], [some, None])
    for row, state, (token, before) in zip(logits, states, ((4, some), (5, None)), strict=True):
        expected, after = model.forward([token], before)
        np.testing.assert_array_equal(row, expected)
        np.testing.assert_array_equal(state.data, after.data)


def test_states_of_another_epsilon_are_not_taken(tmp_path: Path) -> None:
    path = model_file("5.2")
    usual, other = load_model(path), load_model(path, group_norm_eps=1e-5)
    assert load_model(path, group_norm_eps=64e-5).fingerprint == usual.fingerprint
    assert not np.array_equal(usual.forward([1])[0], other.forward([1])[0])
    usual.forward([1])[1].save(tmp_path / "s.state")
    with pytest.raises(SnapshotError, match=r"different weights"):
        other.load_state(tmp_path / "s.state")
    with pytest.raises(UsageError, match="between 0 and 1"):
        load_model(path, group_norm_eps=0.0)
    with pytest.raises(UsageError, match="RWKV-4 has no group norm"):
        load_model(model_file("4"), group_norm_eps=1e-5)


def test_the_epsilon_of_rwkv_2_and_3_may_be_given() -> None:
    for generation, usual in (("2", 1e-16), ("2.5", 1e-9), ("3", 1e-8)):
        path = model_file(generation)
        model, other = load_model(path), load_model(path, key_eps=1e-3)
        assert (model.spec.key_eps, other.spec.key_eps) == (usual, 1e-3)
        assert model.fingerprint != other.fingerprint
        assert load_model(path, key_eps=usual).fingerprint == model.fingerprint
        assert not np.array_equal(model.forward([1, 2])[0], other.forward([1, 2])[0])
        with pytest.raises(UsageError, match="sum of keys must lie between 0 and 1"):
            load_model(path, key_eps=1.0)
    with pytest.raises(UsageError, match="RWKV-4 adds no epsilon"):
        load_model(model_file("4"), key_eps=1e-8)


@pytest.mark.parametrize("parts", ["", "+ffnPre+head_qk"])
def test_a_generation_may_be_named_where_the_tensors_fit(tmp_path: Path, parts: str) -> None:
    found, named = load_model(model_file(f"3{parts}")), f"4{parts}"
    other = load_model(model_file(f"3{parts}"), generation="4")
    assert (found.spec.generation, other.spec.generation) == (f"3{parts}", named)
    assert other.spec.key_eps == 0
    # The formulas agree but for what guards them.
    a, b = found.forward([5, 6, 7])[0], other.forward([5, 6, 7])[0]
    assert np.abs(a - b).max() <= 1e-3 * np.abs(a).max()
    assert load_model(model_file(f"3{parts}"), generation=named).fingerprint == other.fingerprint
    back = load_model(model_file(named), generation="3")
    assert (back.spec.generation, back.spec.key_eps) == (f"3{parts}", 1e-8)
    found.forward([1])[1].save(tmp_path / "s.state")
    with pytest.raises(SnapshotError, match=r"different weights and layout of the state"):
        other.load_state(tmp_path / "s.state")
    for wrong in ("7", "2", "5.2", "", "3 ", "1+head_qk"):
        with pytest.raises(UsageError, match=r"It can be opened as 3[^ ]*, 4[^ ]*\.$"):
            load_model(model_file(named), generation=wrong)
