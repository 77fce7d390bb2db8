"""Session, store and engine together, on a small real model: nothing is lost, nothing drifts."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rwkv_chat.chat.options import Options
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.tree import Finish, Turn
from rwkv_chat.checkpoints.statefile import SavedState
from rwkv_chat.engine.model import Model
from rwkv_chat.engine.pathkey import path_keys
from tests.tiny import Desk, load

LENGTH = 110
CUTS = random.Random(0).sample(range(1, 2 * LENGTH), 200)
OPTIONS = Options(Sampling(top_p=0.9, seed=11), template="chat", max_tokens=LENGTH)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWKV_CHAT_HOME", str(tmp_path_factory.mktemp("home")))
        yield load()


def answers(path: list[Turn]) -> list[tuple[int, ...]]:
    return [turn.ids for turn in path]


def last_state(desk: Desk, model: Model, path: list[Turn]) -> SavedState:
    """What is kept at the end of the path; call it when the desk has written all of it."""
    key = path_keys(model.fingerprint, [turn.ids for turn in path])[-1]
    saved = desk.store.snapshots.get(key, model.owner)
    assert saved is not None
    return saved


@pytest.fixture(scope="module")
def uninterrupted(
    model: Model, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Turn], SavedState]:
    """Two questions and their answers, in one go, and the state at their end."""
    desk = Desk(tmp_path_factory.mktemp("whole"), model, OPTIONS)
    first = desk.ask("What is a river?")
    path = desk.ask("And a lake?", first.id).path()
    desk.session.close()
    assert desk.failures == []
    saved = last_state(desk, model, path)
    desk.store.close()
    return path, saved


@pytest.mark.parametrize("cut", CUTS)
def test_closing_anywhere_changes_nothing(
    cut: int, model: Model, uninterrupted: tuple[list[Turn], SavedState], tmp_path: Path
) -> None:
    """Stop after `cut` tokens, close, reopen, go on: as in the uninterrupted run, to the bit.

    Every third time the snapshots are gone, every third time damaged.
    """
    in_first = min(cut, LENGTH)
    desk = Desk(tmp_path, model, Options(OPTIONS.sampling, template="chat", max_tokens=in_first))
    conversation = desk.ask("What is a river?").id
    if cut > LENGTH:
        desk.session.configure(conversation, max_tokens=cut - LENGTH)
        desk.ask("And a lake?", conversation)
    desk.close()

    for file in (tmp_path / "snapshots").glob("*.state"):
        if cut % 3 == 1:
            file.unlink()
        elif cut % 3 == 2:
            data = bytearray(file.read_bytes())
            data[-cut] ^= 1
            file.write_bytes(data)

    desk = Desk(tmp_path, model, OPTIONS)
    asked = 2 if cut > LENGTH else 1
    missing = asked * LENGTH - cut
    if missing:
        desk.go_on(conversation, missing)
    desk.session.configure(conversation, max_tokens=LENGTH)
    if asked == 1:
        desk.ask("And a lake?", conversation)
    path = desk.session.load(conversation).path()
    desk.session.close()
    assert desk.failures == []
    whole, state = uninterrupted
    assert answers(path) == answers(whole)
    assert [turn.text for turn in path] == [turn.text for turn in whole]
    saved = last_state(desk, model, path)
    np.testing.assert_array_equal(saved.state, state.state)
    np.testing.assert_array_equal(saved.logits, state.logits)
    desk.store.close()


def test_regenerating_starts_from_the_kept_state(model: Model, tmp_path: Path) -> None:
    desk = Desk(tmp_path, model, OPTIONS)
    conversation = desk.ask("What is a river?")
    desk.close()
    desk = Desk(tmp_path, model, OPTIONS)
    first = conversation.path()[-1]
    desk.session.regenerate(conversation.id, first.id)
    desk.wait()
    conversation = desk.session.load(conversation.id)
    second = conversation.path()[-1]
    assert second.parent == first.parent
    assert second.ids != first.ids
    assert desk.session.kept(desk.session.load(conversation.id)) == {
        turn.id for turn in conversation.path()
    }
    desk.close()


def test_a_fork_shares_what_is_kept(model: Model, tmp_path: Path) -> None:
    desk = Desk(tmp_path, model, OPTIONS)
    conversation = desk.ask("What is a river?")
    fork = desk.session.fork(conversation.id, conversation.path()[-1].id)
    assert desk.session.kept(desk.session.load(fork.id)) == {turn.id for turn in fork.path()}
    mine = desk.ask("And a lake?", fork.id).path()[-1]
    theirs = desk.ask("And a lake?", conversation.id).path()[-1]
    assert mine.ids == theirs.ids
    desk.close()
    assert len(list((tmp_path / "snapshots").iterdir())) == len(conversation.path()) + 2


def test_stopping_and_continuing_from_another_thread(
    model: Model, uninterrupted: tuple[list[Turn], SavedState], tmp_path: Path
) -> None:
    desk = Desk(tmp_path, model, Options(OPTIONS.sampling, template="chat", max_tokens=100_000))
    conversation = desk.session.send(None, "What is a river?")
    while not desk.session.load(conversation.id).path()[-1].text:
        pass
    desk.session.stop(conversation.id)
    desk.wait()
    stopped = desk.session.load(conversation.id).path()[-1]
    assert stopped.finish is Finish.CANCELLED
    assert desk.go_on(conversation.id, 10).path()[-1].ids[: len(stopped.ids)] == stopped.ids
    whole = uninterrupted[0][1].ids
    common = min(len(whole), len(stopped.ids))
    assert stopped.ids[:common] == whole[:common]
    desk.close()
