"""Dialogues put together from intents and slots, and the texts that are shipped."""

from pathlib import Path

import pytest

import rwkv_chat.training
from rwkv_chat.errors import UsageError
from rwkv_chat.training.write import (
    Writer,
    hand_written,
    parse_dialogues,
    parse_intents,
    parse_slots,
)

TEXT = Path(rwkv_chat.training.__file__).parent / "text"

INTENTS = """
# A comment
?2 My name is {name}. | I am {name}.
! Hello, {name}!
>> What is my name?
! Your name is {name}.
? What is my name? | @clinc who
! You have not told me.
? A {animal}
! {animal} it is.
> Sure?
! Yes.
"""
SLOTS = "name: Ann, Bob\nanimal: owl, cat\ntopic/fact: a fox/A fox, red. It runs., rain/Water.\n"


def read(name: str) -> str:
    return (TEXT / name).read_text(encoding="utf-8")


def make_writer(seed: int) -> Writer:
    intents = parse_intents(INTENTS, {"clinc:who": ["who am i"]})
    return Writer(intents, parse_slots(SLOTS), seed)


def test_slots_of_one_line_share_their_rows() -> None:
    slots = parse_slots(SLOTS)
    assert slots["topic"] is slots["fact"]
    assert {"topic": "a fox", "fact": "A fox, red. It runs."} in slots["fact"]


def test_a_name_told_is_the_name_answered() -> None:
    writer = make_writer(1)
    seen = 0
    for _ in range(300):
        turns = writer.dialogue()
        assert len(turns) % 2 == 0
        told = [turn for turn in turns if turn.startswith("Hello, ")]
        if told:
            name = told[-1][len("Hello, ") : -1]
            later = [turn for turn in turns[turns.index(told[0]) :] if "have not told" in turn]
            assert f"Your name is {name}." in turns
            assert later == []
            seen += 1
    assert seen > 50


def test_articles_fit_and_answers_begin_with_a_capital() -> None:
    writer = make_writer(2)
    turns = [turn for _ in range(200) for turn in writer.dialogue()]
    assert not any(" a owl" in f" {turn.lower()}" for turn in turns)
    assert "Owl it is." in turns


def test_the_same_seed_writes_the_same() -> None:
    first, second, other = make_writer(3), make_writer(3), make_writer(4)
    several = [first.dialogue() for _ in range(20)]
    assert several == [second.dialogue() for _ in range(20)]
    assert several != [other.dialogue() for _ in range(20)]


@pytest.mark.parametrize("line", ["! an answer before any request", "* a wrong mark"])
def test_a_line_that_cannot_be_read_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        parse_intents(line, {})


def test_an_unknown_borrowed_intent_is_refused() -> None:
    with pytest.raises(UsageError, match="@clinc nothing"):
        parse_intents("? @clinc nothing\n! Yes.", {})


def test_turns_must_alternate() -> None:
    assert parse_dialogues("# x\n\nU: a\nA: b\n\nU: c\nA: d\n") == [["a", "b"], ["c", "d"]]
    with pytest.raises(UsageError, match="alternate"):
        parse_dialogues("U: a\nU: b\n")


def test_the_shipped_dialogues_are_many_and_well_formed() -> None:
    dialogues = hand_written()
    assert len(dialogues) >= 150
    for turns in dialogues:
        assert all(turn and "\n" not in turn and "{" not in turn for turn in turns)


def test_the_shipped_intents_use_only_known_slots() -> None:
    class Anything(dict[str, list[str]]):
        def __contains__(self, key: object) -> bool:
            return True

        def __missing__(self, key: str) -> list[str]:
            return ["something borrowed"]

    writer = Writer(
        parse_intents(read("intents.txt"), Anything()), parse_slots(read("slots.txt")), seed=5
    )
    for _ in range(2000):
        assert not any("{" in turn or "|" in turn for turn in writer.dialogue())
