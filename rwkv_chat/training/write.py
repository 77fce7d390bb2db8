"""Write the project's own dialogues: `python -m rwkv_chat.training.write --text DIR`.

`text/dialogues.txt` and the files of `text/dialogues` hold dialogues written one by one, and
`text/intents.txt` exchanges from which many more are put together, with the values of
`text/slots.txt`. `--text` is the folder of the gather stage; `own.jsonl` and
`templates.jsonl` are added to it.
"""

import argparse
import json
import logging
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkv_chat.errors import UsageError

__all__ = [
    "Intent",
    "Writer",
    "hand_written",
    "invented_names",
    "main",
    "parse_dialogues",
    "parse_intents",
    "parse_slots",
]

log = logging.getLogger("rwkv_chat.training")

_HERE = Path(__file__).parent / "text"
_ROW_END = re.compile(r",\s+(?=[^,./]+/)")
_CJK = re.compile(r"[一-鿿]")
_ANSWERED = re.compile(
    r"\b(you|your|u|ur|hi|hello|hey|bye|thanks?|joke|story|name|i'?m|am|morning|night)\b", re.I
)
_SLOT = re.compile(r"\{(\w+)\}")

Slots = dict[str, list[dict[str, str]]]
Binding = dict[str, str]


@dataclass(slots=True)
class Intent:
    """What a user may say, what may be answered, and what may follow (`later`: not at once)."""

    requests: list[str]
    borrowed: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    follows: list["Intent"] = field(default_factory=list)
    later: list["Intent"] = field(default_factory=list)
    weight: float = 1.0

    @property
    def chinese(self) -> bool:
        """Whether it is spoken in Chinese."""
        return any(_CJK.search(request) for request in self.requests)


def parse_slots(text: str) -> Slots:
    """Rows of values by slot name; slots of one line share their rows."""
    slots: Slots = {}
    for line in _lines(text):
        head, _, body = line.partition(":")
        names = head.split("/")
        parts = _ROW_END.split(body) if len(names) > 1 else body.split(",")
        rows = [
            dict(zip(names, (value.strip() for value in part.split("/")), strict=True))
            for part in parts
        ]
        for name in names:
            slots[name] = rows
    return slots


def invented_names(count: int, seed: int) -> list[str]:
    """Names that nobody has, so that a name must be copied from the chat and not be known."""
    rng = random.Random(seed)
    starts = ["B", "Br", "D", "F", "G", "H", "J", "K", "L", "M", "N", "P", "R", "S", "T", "V", "Z"]
    middles = ["b", "d", "l", "ll", "m", "n", "nd", "r", "rt", "s", "st", "t", "v", "z"]
    ends = ["", "", "n", "l", "r", "s", "k", "ra", "na", "lo", "mi", "ta", "do"]
    vowels = "aeiou"
    return [
        rng.choice(starts)
        + rng.choice(vowels)
        + rng.choice(middles)
        + rng.choice(vowels)
        + rng.choice(ends)
        for _ in range(count)
    ]


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _split(body: str, borrowed: dict[str, list[str]]) -> Intent:
    intent = Intent([])
    for part in (part.strip() for part in body.split("|")):
        if part.startswith("@"):
            name = part[1:].replace(" ", ":")
            if name not in borrowed:
                raise UsageError(f"intents.txt names {part}, but the gathered text has no such.")
            intent.borrowed += borrowed[name]
        else:
            intent.requests.append(part)
    return intent


def parse_intents(text: str, borrowed: dict[str, list[str]]) -> list[Intent]:
    """The intents of `intents.txt`. `borrowed` maps "clinc:NAME" and "nlu:NAME" to requests.

    Raises:
        UsageError: a line is none of the forms that the file explains.
    """
    intents: list[Intent] = []
    current: Intent | None = None
    for line in _lines(text):
        mark, _, body = line.partition(" ")
        if mark.startswith("?"):
            current = _split(body, borrowed)
            current.weight = float(mark[1:] or 1)
            intents.append(current)
        elif mark in (">", ">>") and intents:
            current = _split(body, borrowed)
            (intents[-1].follows if mark == ">" else intents[-1].later).append(current)
        elif mark == "!" and current:
            current.answers.append(body)
        else:
            raise UsageError(f"intents.txt has a line that cannot be read: {line!r}.")
    return intents


def parse_dialogues(text: str) -> list[list[str]]:
    """Dialogues as lists of turns, the user first.

    Raises:
        UsageError: the turns of a dialogue do not alternate.
    """
    dialogues = []
    for block in re.split(r"\n\s*\n", text):
        lines = _lines(block)
        if not lines:
            continue
        if len(lines) % 2 or any(
            not line.startswith("UA"[index % 2] + ": ") for index, line in enumerate(lines)
        ):
            raise UsageError(f"The turns of this dialogue do not alternate: {block!r}.")
        dialogues.append([line[3:] for line in lines])
    return dialogues


def hand_written() -> list[list[str]]:
    """All dialogues of the project that were written one by one."""
    files = [_HERE / "dialogues.txt", *sorted((_HERE / "dialogues").glob("*.txt"))]
    return [turns for path in files for turns in parse_dialogues(path.read_text(encoding="utf-8"))]


class Writer:
    """Puts dialogues together. The same seed gives the same dialogues."""

    def __init__(self, intents: list[Intent], slots: Slots, seed: int) -> None:
        self._slots = slots
        self._rng = random.Random(seed)
        english = [intent for intent in intents if not intent.chinese]
        self._chinese = [intent for intent in intents if intent.chinese]
        self._openers = [i for i in english if {"Hi!", "Good morning"} & {*i.requests}]
        self._closers = [i for i in english if "Thank you, bye." in i.requests]
        self._english = [i for i in english if i not in self._closers]

    def dialogue(self) -> list[str]:
        """One dialogue of 2 to about 16 turns."""
        rng = self._rng
        if rng.random() < 0.06 and self._chinese:
            pairs = [self._exchange(i, {}) for i in rng.choices(self._chinese, k=rng.randint(1, 3))]
            return [turn for pair in pairs for turn in pair]
        weights = [intent.weight for intent in self._english]
        chosen = rng.choices(self._english, weights, k=rng.choice((1, 1, 2, 2, 3, 4, 5, 7)))
        if self._openers and rng.random() < 0.25:
            chosen.insert(0, rng.choice(self._openers))
        turns: list[str] = []
        waiting: list[tuple[Intent, Binding]] = []
        for intent in chosen:
            # What is asked later about something told must not be asked here, as if untold.
            if any({*intent.requests} & {*later.requests} for later, _ in waiting):
                continue
            binding: Binding = {}
            turns += self._exchange(intent, binding)
            follows = rng.sample(intent.follows, min(len(intent.follows), 2))
            for follow, chance in zip(follows, (0.75, 0.35), strict=False):
                if rng.random() > chance:
                    break
                turns += self._exchange(follow, dict(binding))
            if intent.later:
                waiting.append((rng.choice(intent.later), binding))
            if rng.random() < 0.1:
                turns += self._sum()
        for intent, binding in waiting:
            turns += self._exchange(intent, binding)
        if self._closers and rng.random() < 0.2:
            turns += self._exchange(rng.choice(self._closers), {})
        return turns

    def _exchange(self, intent: Intent, binding: Binding) -> list[str]:
        rng = self._rng
        pool = intent.requests
        if intent.borrowed and (not pool or rng.random() < 0.5):
            pool = intent.borrowed
        # A slot of the answer that the request does not name is free; one that it names is kept.
        request = self._fill(rng.choice(pool), binding)
        answer = self._fill(rng.choice(intent.answers), binding)
        answer = re.sub(r"(^|[.?!] )([a-z])(?!wkv)", lambda m: m[1] + m[2].upper(), answer)
        return [self._roughen(request), answer]

    def _fill(self, text: str, binding: Binding) -> str:
        for name in _SLOT.findall(text):
            if name not in binding:
                binding.update(self._rng.choice(self._slots[name]))
        text = _SLOT.sub(lambda match: binding[match[1]], text)
        return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)

    def _roughen(self, request: str) -> str:
        """People type in haste: no capitals, no full stop, a slip now and then."""
        rng = self._rng
        luck = rng.random()
        if luck < 0.25:
            request = request.lower().rstrip(".?!")
        elif luck < 0.4:
            request = request.rstrip(".")
        if rng.random() < 0.03 and len(request) > 6 and not _CJK.search(request):
            at = rng.randrange(1, len(request) - 2)
            request = request[:at] + request[at + 1] + request[at] + request[at + 2 :]
        return request

    def _sum(self) -> list[str]:
        rng = self._rng
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        sign, word, result = "+", "plus", a + b
        if rng.random() < 0.3:
            a, b = max(a, b), min(a, b)
            sign, word, result = "-", "minus", a - b
        forms = (f"What is {a} {word} {b}?", f"{a}{sign}{b}", f"What's {a} {sign} {b}?")
        request = rng.choice((forms[0], forms[0], *forms, f"How much is {a} {word} {b}?"))
        return [self._roughen(request), f"{a} {word} {b} is {result}."]


def _borrowed(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for short, name in (("clinc", "clinc150"), ("nlu", "nlu_evaluation")):
        for row in _rows(folder / f"{name}.jsonl"):
            found.setdefault(f"{short}:{row['intent']}", []).append(row["text"])
    for name in ("topical_chat", "chitchat"):
        for row in _rows(folder / f"{name}.jsonl"):
            for turn in row["turns"]:
                # What has an answer of its own elsewhere must not be answered with a shrug.
                if 3 <= len(turn.split()) <= 14 and turn.isascii() and not _ANSWERED.search(turn):
                    kind = "question" if turn.endswith("?") else "statement"
                    if kind == "question" or "?" not in turn:
                        found.setdefault(f"human:{kind}", []).append(turn)
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _write(path: Path, dialogues: list[list[str]]) -> None:
    lines = (json.dumps({"turns": turns}, ensure_ascii=False) for turns in dialogues)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    log.info("%s: %d dialogues, %d turns", path.name, len(dialogues), sum(map(len, dialogues)))


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="rwkv_chat.training.write", description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--count", type=int, default=90000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    intents = parse_intents(
        (_HERE / "intents.txt").read_text(encoding="utf-8"), _borrowed(options.text)
    )
    slots = parse_slots((_HERE / "slots.txt").read_text(encoding="utf-8"))
    slots["name"] += [{"name": name} for name in invented_names(4000, options.seed)]
    writer = Writer(intents, slots, options.seed)
    _write(options.text / "own.jsonl", hand_written())
    templates = [writer.dialogue() for _ in range(options.count)]
    _write(options.text / "templates.jsonl", templates)


if __name__ == "__main__":
    main()
