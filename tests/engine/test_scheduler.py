"""Slices and batches: nobody waits for long, and nobody's answer depends on the others."""

import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rwkv_chat.chat.ports import Request
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.tree import Finish
from rwkv_chat.engine.backend import DecoderConfig, run_in_turn
from rwkv_chat.engine.model import Model
from rwkv_chat.engine.scheduler import Scheduler, Turn, Work
from rwkv_chat.engine.worker import Worker
from rwkv_chat.errors import EngineError
from tests.tiny import OneModel, Recorder, load

QUESTION = tuple(b"User: Tell me of the sea.\n\n")
ANSWER = tuple(b"Assistant:")


class Counting:
    """A backend and decoder: gives 0, 1, 2... and says who ran together."""

    def __init__(self, batches: list[int]) -> None:
        self.batches = batches
        self.broken = False

    def run_together(
        self, decoders: Sequence[Any], limits: Sequence[int], seconds: float
    ) -> list[tuple[list[int], str]]:
        self.batches.append(len(decoders))
        if self.broken:
            raise EngineError("The backend is broken.")
        return [([each], "running") for each in range(len(decoders))]


def read(name: str, slices: int, log: list[str]) -> Work:
    for _ in range(slices):
        log.append(name)
        yield None


def answer(name: str, backend: Any, frames: int, log: list[str]) -> Work:
    for _ in range(frames):
        try:
            tokens = yield Turn(backend, backend, 1)
        except EngineError:
            log.append(f"{name} failed")
            return
        assert tokens is not None
        log.append(name)


def drain(scheduler: Scheduler) -> None:
    while scheduler:
        scheduler.step()


def test_answers_run_together_and_leave_when_they_are_done() -> None:
    log: list[str] = []
    backend = Counting([])
    scheduler = Scheduler()
    for name, frames in (("a", 1), ("b", 3), ("c", 3)):
        scheduler.add(answer(name, backend, frames, log))
    drain(scheduler)
    assert {name: log.count(name) for name in "abc"} == {"a": 1, "b": 3, "c": 3}
    assert max(backend.batches) >= 2
    assert backend.batches[-1] >= 1
    assert len(backend.batches) < 7  # fewer passes than frames


def test_a_long_reading_lets_an_answer_through_after_every_slice() -> None:
    log: list[str] = []
    scheduler = Scheduler()
    scheduler.add(answer("word", Counting([]), 20, log))
    scheduler.step()
    for name in ("long", "short"):
        scheduler.add(read(name, 10, log))
    drain(scheduler)
    slices = [index for index, name in enumerate(log) if name != "word"]
    assert all(b - a == 2 for a, b in pairwise(slices[:16]))
    assert log.index("short") < 4  # readings take turns, too


def test_backends_do_not_share_a_pass() -> None:
    first, second = Counting([]), Counting([])
    log: list[str] = []
    scheduler = Scheduler()
    for name, backend in (("a", first), ("b", second), ("c", first)):
        scheduler.add(answer(name, backend, 4, log))
    drain(scheduler)
    assert max(first.batches) == 2
    assert set(second.batches) == {1}


def test_a_broken_pass_fails_its_answers_and_no_others() -> None:
    broken, sound = Counting([]), Counting([])
    broken.broken = True
    log: list[str] = []
    scheduler = Scheduler()
    for name, backend in (("a", broken), ("b", sound), ("c", broken)):
        scheduler.add(answer(name, backend, 3, log))
    drain(scheduler)
    assert sorted(log) == ["a failed", "b", "b", "b", "c failed"]


def test_what_raises_is_dropped() -> None:
    def broken() -> Work:
        yield None
        raise EngineError("No.")

    log: list[str] = []
    scheduler = Scheduler()
    scheduler.add(broken())
    scheduler.add(read("other", 3, log))
    drain(scheduler)
    assert log == ["other"] * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWKV_CHAT_HOME", str(tmp_path_factory.mktemp("home")))
        yield load()


def request(seed: int, question: bytes = b"", max_tokens: int = 40) -> Request:
    sampling = Sampling(temperature=1.0, top_p=0.9, presence=0.4, frequency=0.4)
    path = (QUESTION + tuple(question), ANSWER)
    return Request(path, 0, sampling, seed, stops=(), max_tokens=max_tokens)


def config(seed: int) -> DecoderConfig:
    letters = tuple(bytes([i]) for i in range(256))
    return DecoderConfig(request(seed).sampling, seed, (), letters, end=None)


@pytest.mark.parametrize("together", ["native", "in turn"])
def test_decoders_say_together_what_they_say_alone(model: Model, together: str) -> None:
    backend = model.backend
    starts = [backend.forward([*QUESTION, index], None) for index in range(7)]
    limits = [9, 0, 30, 1, 17, 30, 30]
    alone = []
    for seed, ((logits, state), limit) in enumerate(zip(starts, limits, strict=True)):
        decoder = backend.decoder(state, logits, config(seed))
        alone.append((decoder.run(limit, 1e9), decoder.state, decoder.logits))
    decoders = [
        backend.decoder(state, logits, config(seed)) for seed, (logits, state) in enumerate(starts)
    ]
    run = backend.run_together if together == "native" else run_in_turn
    results = run(decoders, limits, 1e9)
    assert [len(ids) for ids, _ in results] == limits
    for result, decoder, (expected, state, logits) in zip(results, decoders, alone, strict=True):
        assert result == expected
        np.testing.assert_array_equal(decoder.state, state)
        np.testing.assert_array_equal(decoder.logits, logits)


def test_a_cancelled_decoder_leaves_the_others(model: Model) -> None:
    backend = model.backend
    logits, state = backend.forward(QUESTION, None)
    decoders = [backend.decoder(state, logits, config(seed)) for seed in range(3)]
    decoders[1].cancel()
    results = backend.run_together(decoders, [5, 5, 5], 1e9)
    assert [(len(ids), why) for ids, why in results] == [
        (5, "running"), (0, "cancelled"), (5, "running"),
    ]  # fmt: skip


def test_one_decoder_cannot_run_beside_itself(model: Model) -> None:
    logits, state = model.backend.forward(QUESTION, None)
    decoder = model.backend.decoder(state, logits, config(1))
    with pytest.raises(Exception, match="different ones"):
        model.backend.run_together([decoder, decoder], [1, 1], 1.0)


def test_answers_beside_others_are_what_they_are_alone(model: Model) -> None:
    """Some join while others read or write, and one is cancelled."""
    wanted = [request(seed, b"word " * 90 * (seed % 3), 40 + seed) for seed in range(6)]
    alone = [run_all(model, [each])[0].ids for each in wanted]
    together = run_all(model, wanted, endless=True)
    assert [each.ids for each in together] == alone
    assert all(each.finish is Finish.LENGTH for each in together)


def run_all(model: Model, wanted: list[Request], endless: bool = False) -> list[Recorder]:
    worker = Worker(OneModel(model))
    worker.open("tiny", lambda step, fraction: None)
    noise = Recorder()
    job = worker.generate(model, request(99, max_tokens=10**6), noise) if endless else None
    if endless:
        assert noise.began.wait(30)
    recorders = [Recorder() for _ in wanted]
    for each, recorder in zip(wanted, recorders, strict=True):
        worker.generate(model, each, recorder)
    for recorder in recorders:
        assert recorder.ended.wait(30)
    if job is not None:
        threading.Thread(target=job.cancel).start()
        assert noise.ended.wait(10)
        assert noise.finish is Finish.CANCELLED
    worker.close()
    return recorders
