"""The model that ships with the package: small, whole, and polite enough to end its turns."""

import pytest

from rwkv_chat import paths
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.engine.select import load_model
from rwkv_chat.tokenizer.load import load
from rwkv_chat.training.judge import Answer, Speaker
from rwkv_chat.training.prompts import PROMPTS


@pytest.fixture(scope="module")
def answers() -> dict[str, list[Answer]]:
    """Three answers to each of the fixed prompts."""
    speaker = Speaker(load_model(paths.bundled("model.safetensors"), "bf16", threads=1))
    given: dict[str, list[Answer]] = {}
    for turns in PROMPTS:
        for seed in (1, 2, 3):
            for turn, answer in zip(turns, speaker.chat(turns, seed), strict=True):
                given.setdefault(turn, []).append(answer)
    return given


def test_it_opens_as_the_embedded_model_with_its_vocabulary() -> None:
    path = paths.bundled("model.safetensors")
    assert path.stat().st_size < 25e6
    model = open_model(path)
    assert (model.name, model.weights) == ("embedded", "bf16")
    assert (model.tokenizer, model.template) == ("bundled", "chat")
    assert model.path == path
    words = load(model.tokenizer, model.spec.vocab_size, path.parent)
    assert words.vocab_size == model.spec.vocab_size
    text = "Hello! 你好 \N{SNOWMAN}\x00"
    assert words.decode(words.encode(text)) == text


def test_it_ends_its_turns_without_loops_or_labels(answers: dict[str, list[Answer]]) -> None:
    every = [answer for given in answers.values() for answer in given]
    assert len(every) == 60
    assert sum(answer.clean for answer in every) >= 54  # 57 where it was measured
    assert sum(answer.repeats for answer in every) <= 3
    assert not any(answer.leaks for answer in every)


def test_it_knows_who_it_is_and_greets_in_kind(answers: dict[str, list[Answer]]) -> None:
    assert all("model" in answer.text for answer in answers["What is your name?"])
    assert all("5" in answer.text for answer in answers["What is 2 plus 3?"])
    assert all("你好" in answer.text for answer in answers["你好"])


def test_its_card_names_its_licences_and_its_limits() -> None:
    card = paths.bundled("MODEL_CARD.md").read_text(encoding="utf-8")
    for word in ("CDLA-Sharing-1.0", "CC0", "MIT", "CC BY 3.0", "CC BY 4.0", "makes things up"):
        assert word in card
