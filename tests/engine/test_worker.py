"""The engine's thread on a small real model: restored, replayed and uninterrupted runs agree."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from rwkv_chat.chat.ports import Request
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.tree import Finish
from rwkv_chat.checkpoints.statefile import SavedState, StateOwner
from rwkv_chat.engine import generation
from rwkv_chat.engine.model import Model
from rwkv_chat.engine.native import NativeBackend
from rwkv_chat.engine.pathkey import path_keys
from rwkv_chat.engine.sampling import Penalties
from rwkv_chat.engine.worker import Worker
from rwkv_chat.errors import EngineError, StoreFullError
from rwkv_chat.models.state import F32
from tests.tiny import OneModel, Recorder, load

QUESTION = tuple(b"User: Tell me of the sea.\n\n")
ANSWER = tuple(b"Assistant:")


class Shelf:
    """A Keeper in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, SavedState] = {}
        self.asked: list[str] = []

    def get(self, key: str, owner: StateOwner) -> SavedState | None:
        self.asked.append(key)
        return self.kept.get(key)

    def put(self, key: str, saved: SavedState) -> None:
        self.kept[key] = saved

    def has(self, keys: Sequence[str]) -> set[str]:
        return set(keys) & set(self.kept)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWKV_CHAT_HOME", str(tmp_path_factory.mktemp("home")))
        yield load()


def request(answer: Sequence[int] = ANSWER, generated: int = 0, max_tokens: int = 60) -> Request:
    return Request(
        path=(QUESTION, tuple(answer)),
        generated=generated,
        sampling=Sampling(temperature=1.0, top_p=0.9, presence=0.4, frequency=0.4),
        seed=5,
        stops=(),
        max_tokens=max_tokens,
    )


def run(model: Model, wanted: Request, shelf: Shelf | None = None) -> Recorder:
    worker = Worker(OneModel(model), shelf)
    recorder = Recorder()
    worker.generate(model, wanted, recorder)
    assert recorder.ended.wait(30)
    worker.close()
    return recorder


def test_the_same_request_gives_the_same_answer(model: Model) -> None:
    first, second = run(model, request()), run(model, request())
    assert first.ids == second.ids
    assert len(first.ids) == 60
    assert first.finish is Finish.LENGTH
    assert run(model, replace(request(), seed=6)).ids != first.ids


@pytest.mark.parametrize("lose", [False, True], ids=["restored", "replayed"])
def test_an_answer_goes_on_as_if_it_had_never_stopped(model: Model, lose: bool) -> None:
    shelf = Shelf()
    whole = run(model, request(), shelf)
    end = path_keys(model.fingerprint, [QUESTION, ANSWER, whole.ids])[-1]
    state, logits = shelf.kept[end].state, shelf.kept[end].logits
    for cut in range(1, 60, 7):
        shelf = Shelf()
        begun = run(model, request(max_tokens=cut), shelf)
        if lose:
            shelf = Shelf()
        rest = request((*ANSWER, *begun.ids), generated=cut, max_tokens=60 - cut)
        assert begun.ids + run(model, rest, shelf).ids == whole.ids
        np.testing.assert_array_equal(shelf.kept[end].state, state)
        np.testing.assert_array_equal(shelf.kept[end].logits, logits)


def test_a_restored_answer_reads_nothing_again(model: Model) -> None:
    shelf = Shelf()
    begun = run(model, request(max_tokens=5), shelf)
    rest = run(model, request((*ANSWER, *begun.ids), generated=5), shelf)
    assert rest.prefill == []
    fresh = run(model, request((*ANSWER, *begun.ids), generated=5))
    assert fresh.prefill[-1] == (len(QUESTION) + len(ANSWER) + 5,) * 2


def test_states_are_kept_after_the_question_and_after_the_answer(model: Model) -> None:
    shelf = Shelf()
    recorder = run(model, request(), shelf)
    keys = path_keys(model.fingerprint, [QUESTION, ANSWER, recorder.ids])
    assert set(shelf.kept) == {keys[0], keys[2]}
    saved = shelf.kept[keys[2]]
    assert saved.tokens == len(QUESTION) + len(ANSWER) + 60
    assert (saved.seed, saved.draws) == (5, 60)
    seen = Penalties(request().sampling, model.tokenizer.exempt, recorder.ids)
    changed = seen.apply(np.zeros(256, np.float32))
    for token in range(256):
        count = saved.penalties.get(token)
        expected = 0.0 if count is None else -(0.4 + 0.4 * count)
        assert changed[token] == pytest.approx(expected)


def test_two_conversations_do_not_mix(model: Model) -> None:
    """Interleaved on one worker, each is what it is alone."""
    other = replace(request(), path=(tuple(b"User: And the hills?\n\n"), ANSWER), seed=9)
    alone = [run(model, request()).ids, run(model, other).ids]
    worker = Worker(OneModel(model))
    recorders = [Recorder() for _ in range(6)]
    for index, recorder in enumerate(recorders):
        worker.generate(model, (request(), other)[index % 2], recorder)
    for index, recorder in enumerate(recorders):
        assert recorder.ended.wait(30)
        assert recorder.ids == alone[index % 2]
    worker.close()


def test_answers_that_run_at_once_all_go_on(model: Model) -> None:
    """The second one is through while the first one, which has no end, still runs."""
    worker = Worker(OneModel(model))
    first, second = Recorder(), Recorder()
    endless = worker.generate(model, request(max_tokens=1_000_000), first)
    assert first.began.wait(30)
    worker.generate(model, request(), second)
    assert second.ended.wait(30)
    assert second.ids == run(model, request()).ids
    assert not first.ended.is_set()
    said = len(first.ids)
    while len(first.ids) == said:
        assert not first.ended.wait(0.01)
    endless.cancel()
    assert first.ended.wait(5)
    worker.close()


def test_the_time_of_others_does_not_make_the_pieces_of_reading_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each piece is read in no time, and between two of them others take ten seconds."""
    clock = 0.0

    class Reader:
        def read(self, ids: Sequence[int], state: object) -> SimpleNamespace:
            nonlocal clock
            clock += 0.04
            return SimpleNamespace(is_finite=True)

    monkeypatch.setattr(generation.time, "monotonic", lambda: clock)
    recorder = Recorder()
    wanted = replace(request(), path=(tuple(range(1000)), ANSWER))
    job = generation.Generation(Reader(), wanted, recorder)  # type: ignore[arg-type]
    slices = job.run(["a", "b"], 0, None)
    while recorder.prefill[-1:] != [(1000 + len(ANSWER),) * 2]:
        next(slices)
        clock += 10
    read = [done for done, _ in recorder.prefill]
    assert [after - before for before, after in pairwise([0, *read])][:4] == [16, 32, 64, 128]


def test_a_failure_does_not_touch_the_answer_beside_it(model: Model) -> None:
    worker = Worker(OneModel(model))
    first, second = Recorder(), Recorder()
    worker.generate(model, request(max_tokens=2000), first)
    assert first.began.wait(30)
    worker.generate(model, replace(request(), path=((-1,), ANSWER)), second)
    assert second.ended.wait(30)
    assert second.reason
    assert first.ended.wait(30)
    assert first.finish is Finish.LENGTH
    assert first.ids[:60] == run(model, request()).ids
    worker.close()


def test_cancelling_keeps_what_there_is(model: Model) -> None:
    shelf = Shelf()
    worker = Worker(OneModel(model), shelf)
    recorder = Recorder()
    job = worker.generate(model, request(max_tokens=1_000_000), recorder)
    assert recorder.began.wait(30)
    job.cancel()
    assert recorder.ended.wait(5)
    worker.close()
    assert recorder.finish is Finish.CANCELLED
    end = path_keys(model.fingerprint, [QUESTION, ANSWER, recorder.ids])[-1]
    assert end in shelf.kept


def test_one_of_two_answers_is_cancelled_and_the_other_goes_on(model: Model) -> None:
    worker = Worker(OneModel(model))
    first, second = Recorder(), Recorder()
    going_on = worker.generate(model, request(max_tokens=1_000_000), first)
    cancelled = worker.generate(model, request(max_tokens=1_000_000), second)
    assert first.began.wait(30)
    cancelled.cancel()
    assert second.ended.wait(5)
    assert second.finish is Finish.CANCELLED
    assert not first.ended.is_set()
    going_on.cancel()
    assert first.ended.wait(5)
    worker.close()


def test_closing_ends_a_running_answer(model: Model) -> None:
    worker = Worker(OneModel(model))
    recorder = Recorder()
    worker.generate(model, request(max_tokens=1_000_000), recorder)
    assert recorder.began.wait(30)
    worker.close()
    assert recorder.finish is Finish.CANCELLED


def test_a_stop_string_ends_the_answer(model: Model) -> None:
    ids = run(model, request()).ids
    stopped = run(model, replace(request(), stops=(bytes(ids[9:11]),)))
    assert stopped.finish is Finish.STOP
    assert bytes(stopped.ids) == bytes(ids)[: bytes(ids).index(bytes(ids[9:11])) + 2]


@pytest.mark.parametrize("error", [StoreFullError("The disk is full."), RuntimeError("boom")])
def test_a_failing_keeper_costs_no_answer(model: Model, error: Exception) -> None:
    class Broken(Shelf):
        def put(self, key: str, saved: SavedState) -> None:
            raise error

    worker = Worker(OneModel(model), Broken())
    for seed in (1, 2):
        recorder = Recorder()
        worker.generate(model, replace(request(), seed=seed), recorder)
        assert recorder.ended.wait(30)
        assert recorder.finish is Finish.LENGTH
    worker.close()


def test_a_keeper_that_cannot_be_read_costs_only_time(model: Model) -> None:
    class Unreadable(Shelf):
        def get(self, key: str, owner: StateOwner) -> SavedState | None:
            raise StoreFullError("The disk is full.")

    assert run(model, request(), Unreadable()).ids == run(model, request()).ids


def test_nothing_keeps_the_thread_from_the_next_answer(model: Model) -> None:
    class Rude(Recorder):
        def finished(self, finish: Finish, tokens_per_s: float) -> None:
            super().finished(finish, tokens_per_s)
            raise RuntimeError("the listener broke")

    worker = Worker(OneModel(model))
    for wanted in (replace(request(), path=((-1,), ANSWER)), request()):
        rude = Rude()
        worker.generate(model, wanted, rude)
        assert rude.ended.wait(30)
    assert rude.finish is Finish.LENGTH
    worker.close()
    with pytest.raises(EngineError, match="closing"):
        worker.generate(model, request(), Recorder())


def test_numbers_that_are_not_finite_end_the_answer_and_are_not_kept(model: Model) -> None:
    """A poisoned state must not be found again: the same question is read anew."""

    class Poisoned(NativeBackend):
        def __init__(self) -> None:
            pass

        spec, layout, name = model.spec, model.backend.layout, "poisoned"

        def forward(self, ids: Sequence[int], state: F32 | None) -> tuple[F32, F32]:
            logits, after = model.backend.forward(ids, state)
            logits[0] = np.nan
            return logits, after

    shelf = Shelf()
    recorder = run(replace(model, backend=Poisoned()), request(), shelf)
    assert "not finite" in recorder.reason
    assert shelf.kept == {}
    assert run(model, request(), shelf).finish is Finish.LENGTH


def test_a_failure_is_told_as_a_sentence(model: Model) -> None:
    class Broken(Shelf):
        def get(self, key: str, owner: StateOwner) -> SavedState | None:
            raise ValueError("boom")

    recorder = run(model, request(), Broken())
    assert "boom" in recorder.reason
    assert "retry" in recorder.reason


def test_what_is_kept_is_known(model: Model) -> None:
    worker = Worker(OneModel(model), Shelf())
    recorder = Recorder()
    worker.generate(model, request(), recorder)
    assert recorder.ended.wait(30)
    assert worker.kept(model, [QUESTION, (*ANSWER, *recorder.ids)]) == [True, True]
    assert worker.kept(model, [QUESTION, ANSWER]) == [True, False]
    worker.close()
