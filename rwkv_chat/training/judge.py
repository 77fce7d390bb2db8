"""Measure a model, ours or any other that the application opens:
`python -m rwkv_chat.training.judge --model FILE --text DIR --out DIR`.

Answers to the chats of `prompts`, each from three seeds and unedited, with how many of them end by
themselves, repeat four tokens or leak a label; and bits per byte on the held-out documents of every
source, with a second weights type to compare. Writes `judged.json` and `transcripts.md`.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from rwkv_chat import _native
from rwkv_chat.engine.model import Model
from rwkv_chat.engine.select import load_model
from rwkv_chat.training.measure import bits_per_byte, documents_of
from rwkv_chat.training.pack import MIX
from rwkv_chat.training.prompts import FIVE_TURNS, PROMPTS, THIRTY_TURNS, UNSEEN

__all__ = ["Answer", "Speaker", "main", "rates"]

log = logging.getLogger("rwkv_chat.training")

_SEEDS = (1, 2, 3)
_STOP = b"\n\n"
_MAX_TOKENS = 80
_TOP_P = 0.4


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `clean` when it ended by itself, in time, with nothing wrong at the end."""

    text: str
    clean: bool
    repeats: bool
    leaks: bool


class Speaker:
    """A model that answers, one token at a time, at temperature 1 and without penalties."""

    def __init__(self, model: Model, top_p: float = _TOP_P) -> None:
        self._model, self._top_p = model, top_p

    def chat(self, turns: Sequence[str], seed: int) -> Iterator[Answer]:
        """The answers to `turns`, one after the other."""
        model, words = self._model, self._model.tokenizer
        state = None
        for turn in turns:
            logits, state = model.forward(words.encode(f"User: {turn}\n\nAssistant:"), state)
            said: list[int] = []
            data = b""
            while len(said) < _MAX_TOKENS and not data.endswith(_STOP):
                choice = _native.sample(logits, 1.0, self._top_p, 0, 0.0, seed, len(said))
                if choice == 0:
                    break
                said.append(choice)
                data += words.token_bytes[choice]
                logits, state = model.forward([choice], state)
            yield _judge(data, said)


def _judge(data: bytes, said: list[int]) -> Answer:
    text = data.decode("utf-8", "replace")
    grams = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    return Answer(
        text.strip(),
        text.endswith("\n\n") and bool(text.strip()),
        len(set(grams)) < len(grams),
        any(label in text for label in ("User:", "Assistant:", "Bob:", "Alice:")),
    )


def rates(chats: Sequence[Sequence[Answer]]) -> dict[str, float]:
    """How many answers there are, and the shares that end cleanly, repeat four tokens, leak a
    label, and say what one of the two answers before has said.
    """
    answers = [answer for chat in chats for answer in chat]
    total = len(answers)
    again = sum(
        answer.text in {earlier.text for earlier in chat[max(0, place - 2) : place]}
        for chat in chats
        for place, answer in enumerate(chat)
    )
    return {
        "answers": total,
        "clean_stop": sum(a.clean for a in answers) / total,
        "repeated_4_gram": sum(a.repeats for a in answers) / total,
        "leaked_label": sum(a.leaks for a in answers) / total,
        "said_again": again / total,
    }


_CHATS = {
    "The 20 prompts": PROMPTS,
    "Chats of three turns": UNSEEN,
    "Chats of five turns": FIVE_TURNS,
    "Chats of thirty turns": THIRTY_TURNS,
}


def _transcripts(speaker: Speaker) -> tuple[str, dict[str, dict[str, float]]]:
    lines: list[str] = []
    found = {}
    for title, chats in _CHATS.items():
        lines.append(f"## {title}\n")
        answered = []
        for seed, turns in product(_SEEDS, chats):
            answered.append(list(speaker.chat(turns, seed)))
            for turn, answer in zip(turns, answered[-1], strict=True):
                lines.append(f"    User: {turn}\n    Assistant: {answer.text}")
            lines.append("")
        found[title] = rates(answered)
        log.info("%s: %s", title, found[title])
    return "\n".join(lines) + "\n", found


def _bits(model: Model, folder: Path, limit: int) -> dict[str, float]:
    found = {}
    for name, share in MIX.items():
        file = folder / f"{name}.jsonl"
        if share.optional and not file.exists():
            continue
        documents = islice(documents_of(file, held_out=True), limit)
        found[name] = bits_per_byte(model, documents)
        log.info("%s, %s weights: %.3f bits per byte", name, model.weights, found[name])
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="rwkv_chat.training.judge", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--weights", nargs="+", default=["bf16"], help="the first one talks")
    parser.add_argument("--text", type=Path, required=True, help="the folder of gather and write")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100, help="held-out documents of a source")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    models = {weights: load_model(options.model, weights) for weights in options.weights}
    text, found = _transcripts(Speaker(models[options.weights[0]]))
    (options.out / "transcripts.md").write_text(text, encoding="utf-8")
    bits = {weights: _bits(model, options.text, options.limit) for weights, model in models.items()}
    record = {"bits_per_byte": bits, "answers": found}
    (options.out / "judged.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
