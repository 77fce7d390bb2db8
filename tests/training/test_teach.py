"""What is kept of a teacher's answers, with a teacher that a test makes."""

import json
from pathlib import Path

import pytest

from rwkv_chat.errors import UsageError
from rwkv_chat.training.teach import acceptable, requests, shortened, teach


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder with two public chats."""
    for name in ("topical_chat", "chitchat"):
        turns = [f"I like the {name} garden number {n}" for n in range(6)]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"turns": turns}), encoding="utf-8")
    return tmp_path


def test_an_answer_is_cut_to_three_sentences() -> None:
    assert shortened("One is here.  Two!\nThree? Four. And a bit") == "One is here. Two! Three?"
    assert shortened("no end at all") == ""


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("Gardens need water, and a garden needs time.", True),
        ("That is nice to hear, my friend.", False),  # to no point
        ("A garden.", False),
        ("As an AI I have no garden to speak of.", False),
        ("* a garden with a list of things.", False),
        ("My garden is big and my garden is big and green.", False),
        ("The garden is open", False),
        ("The garden costs 1000 coins.", False),
    ],
)
def test_what_is_kept(answer: str, kept: bool) -> None:
    assert acceptable("I like my garden.", answer) is kept


def test_a_run_goes_on_where_it_stopped(text: Path) -> None:
    asked: list[str] = []

    def teacher(request: str, seed: int) -> str:
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(request)
        return f"A garden like number {len(asked)} is nice. It"

    with pytest.raises(KeyboardInterrupt):
        teach(text, teacher, 60, 1)
    asked_first = list(asked)
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        teach(text, teacher, 60, 1)
    assert not set(asked) & set(asked_first)
    kept = teach(text, lambda request, seed: f"Garden {seed} is green and wide.", 60, 1)
    rows = [json.loads(line) for line in (text / "teacher.jsonl").open(encoding="utf-8")]
    assert len(rows) == kept
    assert all(row["turns"][1].endswith(".") for row in rows)
    raw = (text / "teacher.raw.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(raw) == len(requests(text, 1)) == 12


def test_time_ends_a_run(text: Path) -> None:
    assert teach(text, lambda *_: "A garden is a garden, they say.", 0.0, 1) == 0


def test_without_the_public_chats_there_is_nothing_to_ask(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gather"):
        requests(tmp_path, 1)
