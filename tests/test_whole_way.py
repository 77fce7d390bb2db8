"""Session, store and engine together, on a small real model: nothing is lost, nothing drifts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkv_chat.chat.options import Options
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.tree import Finish, Turn
from rwkv_chat.engine.model import Model
from tests.tiny import Desk, load

LENGTH = 40
CUTS = 200
OPTIONS = Options(Sampling(top_p=0.9, seed=11), template="chat", max_tokens=LENGTH)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWKV_CHAT_HOME", str(tmp_path_factory.mktemp("home")))
        yield load()


def answers(path: list[Turn]) -> list[tuple[int, ...]]:
    return [turn.ids for turn in path]


@pytest.fixture(scope="module")
def uninterrupted(model: Model, tmp_path_factory: pytest.TempPathFactory) -> list[Turn]:
    """Two questions and their answers, in one go."""
    desk = Desk(tmp_path_factory.mktemp("whole"), model, OPTIONS)
    first = desk.ask("What is a river?")
    path = desk.ask("And a lake?", first.id).path()
    desk.close()
    assert desk.failures == []
    return path


@pytest.mark.parametrize("cut", [1 + n * 77 % (2 * LENGTH - 1) for n in range(CUTS)])
def test_closing_anywhere_changes_nothing(
    cut: int, model: Model, uninterrupted: list[Turn], tmp_path: Path
) -> None:
    """Stop after `cut` tokens, close, reopen, go on: the ids are those of the uninterrupted run.

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
    desk.close()
    assert desk.failures == []
    assert answers(path) == answers(uninterrupted)
    assert [turn.text for turn in path] == [turn.text for turn in uninterrupted]


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
    assert desk.session.kept(conversation.id) == {turn.id for turn in conversation.path()}
    desk.close()


def test_a_fork_shares_what_is_kept(model: Model, tmp_path: Path) -> None:
    desk = Desk(tmp_path, model, OPTIONS)
    conversation = desk.ask("What is a river?")
    fork = desk.session.fork(conversation.id, conversation.path()[-1].id)
    assert desk.session.kept(fork.id) == {turn.id for turn in fork.path()}
    mine = desk.ask("And a lake?", fork.id).path()[-1]
    theirs = desk.ask("And a lake?", conversation.id).path()[-1]
    assert mine.ids == theirs.ids
    desk.close()
    assert len(list((tmp_path / "snapshots").iterdir())) == len(conversation.path()) + 2


def test_stopping_and_continuing_from_another_thread(
    model: Model, uninterrupted: list[Turn], tmp_path: Path
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
    whole = uninterrupted[1].ids
    common = min(len(whole), len(stopped.ids))
    assert stopped.ids[:common] == whole[:common]
    desk.close()
