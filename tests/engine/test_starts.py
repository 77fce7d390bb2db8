"""A trained start state changes what is said, and its states are never taken for others."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_chat.chat.options import Options
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.engine.model import Model
from rwkv_chat.engine.starts import Starts
from rwkv_chat.errors import SnapshotError, UsageError
from tests.tiny import Desk, load

IDS = [72, 101, 108, 108, 111]


@pytest.fixture(params=["5.2", "6", "7"])
def model(request: pytest.FixtureRequest) -> Model:
    return load(generation=request.param)


def state_file(folder: Path, model: Model, seed: int = 1) -> Path:
    numbers = torch.Generator().manual_seed(seed)
    heads, size = model.spec.n_head, model.spec.head_size
    path = folder / f"start{seed}.pth"
    states = {
        # Large, for a model of random weights to remember it over a few turns.
        f"blocks.{layer}.att.time_state": 3e4 * torch.randn(heads, size, size, generator=numbers)
        for layer in range(model.spec.n_layer)
    }
    torch.save(states, path)
    return path


def test_it_is_where_the_model_begins(model: Model, tmp_path: Path) -> None:
    path = state_file(tmp_path, model)
    started = model.with_start(path)
    plain, _ = model.forward(IDS)
    logits, state = started.forward(IDS)
    assert not np.allclose(plain, logits, atol=1e-3)
    assert started.start is not None
    wanted, data = model.backend.forward(IDS, started.start)
    assert np.array_equal(logits, wanted)
    assert np.array_equal(state.data, data)
    batch, _ = started.forward_batch([IDS[0]] * 2, [None, None])
    assert np.array_equal(batch[1], started.forward(IDS[:1])[0])
    state.save(tmp_path / "saved.state")
    assert np.array_equal(started.load_state(tmp_path / "saved.state").data, data)


def test_a_saved_state_is_a_start_too(model: Model, tmp_path: Path) -> None:
    _, state = model.forward(IDS)
    state.save(tmp_path / "read.state")
    started = model.with_start(tmp_path / "read.state")
    wanted, data = model.forward(IDS, state)
    logits, again = started.forward(IDS)
    assert np.array_equal(logits, wanted)
    assert np.array_equal(again.data, data.data)
    other = load(generation="7" if model.spec.generation != "7" else "6")
    with pytest.raises(SnapshotError, match="different weights"):
        other.with_start(tmp_path / "read.state")


def test_states_of_other_starts_are_refused(model: Model, tmp_path: Path) -> None:
    first = model.with_start(state_file(tmp_path, model))
    again = model.with_start(state_file(tmp_path, model))
    other = model.with_start(state_file(tmp_path, model, seed=2))
    assert first.fingerprint == again.fingerprint
    assert len({model.fingerprint, first.fingerprint, other.fingerprint}) == 3
    _, state = first.forward(IDS)
    again.forward(IDS, state)
    state.save(tmp_path / "saved.state")
    for foreign in (model, other):
        with pytest.raises(UsageError, match="belongs to another model"):
            foreign.forward(IDS, state)
        with pytest.raises(SnapshotError, match="different weights"):
            foreign.load_state(tmp_path / "saved.state")


def test_the_last_one_is_remembered_until_its_file_changes(tmp_path: Path) -> None:
    model, starts = load(), Starts()
    path = state_file(tmp_path, model)
    assert starts.of(model, "") is model
    first = starts.of(model, str(path))
    assert starts.of(model, str(path)) is first
    torch.save(torch.load(state_file(tmp_path, model, seed=2)), path)
    os.utime(path, ns=(1, 1))
    assert starts.of(model, str(path)).fingerprint != first.fingerprint
    path.unlink()
    with pytest.raises(SnapshotError, match="is not there"):
        starts.of(model, str(path))


def test_a_conversation_keeps_its_start(tmp_path: Path) -> None:
    model = load()
    path = state_file(tmp_path, model)
    options = Options(Sampling(top_p=0.9, seed=4), template="chat", max_tokens=20)
    desk = Desk(tmp_path / "desk", model, options)
    plain = desk.ask("Hello").path()[-1]
    desk.session.configure(None, start=str(path))
    first = desk.ask("Hello")
    tuned = first.path()[-1]
    assert plain.ids != tuned.ids
    more = desk.ask("And?", first.id)
    desk.close()

    desk = Desk(tmp_path / "desk", model, options)  # another window, whose default is no start
    assert desk.session.options(first.id).start == str(path)
    assert desk.session.kept(desk.session.load(first.id)) == {turn.id for turn in more.path()}
    wanted = desk.ask("Why?", first.id).path()[-1].ids
    again = Desk(tmp_path / "other", model, options)  # read anew, with nothing kept
    again.session.configure(None, start=str(path))
    copy = again.ask("Hello")
    for text in ("And?", "Why?"):
        copy = again.ask(text, copy.id)
    assert copy.path()[-1].ids == wanted
    again.close()

    path.unlink()
    assert desk.session.kept(desk.session.load(first.id)) == set()
    desk.ask("Still there?", first.id)
    assert "is not there" in desk.failures[-1]
    desk.session.configure(first.id, start="")
    desk.ask("And now?", first.id)
    assert len(desk.failures) == 1
    desk.close()
