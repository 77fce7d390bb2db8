"""Measure a model: `python -m rwkv_chat.training.judge --package DIR --packed DIR --run DIR`.

Bits per byte on held-out documents of every source, and answers to 20 fixed prompts, each from
three seeds, unedited. Writes `judged.json` and `transcripts.md` into the run.
"""

import argparse
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rwkv_chat import _native
from rwkv_chat.checkpoints.open import open_model
from rwkv_chat.tokenizer.load import read_vocabulary
from rwkv_chat.training.batches import Source, open_packed
from rwkv_chat.training.export import open_trained
from rwkv_chat.training.model import Shape, Trainee
from rwkv_chat.training.train import loss_of

__all__ = ["PROMPTS", "Answer", "Speaker", "bits_per_byte", "main"]

log = logging.getLogger("rwkv_chat.training")

PROMPTS = (
    ("Hi!",),
    ("What is your name?",),
    ("Who made you?",),
    ("What can you do?",),
    ("How do I start a new chat?",),
    ("I feel sad today.",),
    ("Tell me a joke.",),
    ("Tell me a story about a cat.", "What happens next?"),
    ("What is a volcano?",),
    ("Why is the sky blue?",),
    ("What should I cook tonight?",),
    ("I have a test tomorrow.",),
    ("Do you like music?",),
    ("What is 2 plus 3?",),
    ("Where is Paris?",),
    ("Can you help me write to my friend?",),
    ("asdf qwer",),
    ("你好",),
    ("Thank you, bye.",),
)
"""19 chats, of which one has two turns: the 20 prompts."""

UNSEEN = (
    ("I painted my door yellow.", "My neighbour laughed at it.", "Should I paint it again?"),
    ("can u help me pick a present for my uncle", "he likes fishing and old maps", "ok thx"),
    ("Why do cats purr?", "And do lions purr too?", "You are not very sure."),
    ("I had a strange day at work.", "My computer quacked like a duck.", "What would you do?"),
    ("My name is Ottokar.", "I keep three chickens.", "What is my name?"),
)
"""Chats written without a look at the training text."""

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
    """A converted model that answers, one token at a time, at temperature 1."""

    def __init__(self, package: Path) -> None:
        opened = open_model(package / "model.safetensors")
        fields = asdict(opened.spec)
        del fields["generation"]
        self._model = _native.Model(fields, opened.tensors, 1, "")
        self._tokens = read_vocabulary(package / "vocab.txt")
        self._words = _native.Vocabulary(self._tokens)

    def chat(self, turns: tuple[str, ...], seed: int, top_p: float = _TOP_P) -> Iterator[Answer]:
        """The answers to `turns`, one after the other."""
        state = None
        for turn in turns:
            ids = self._words.encode(f"User: {turn}\n\nAssistant:".encode())
            logits, state = self._model.forward(ids, state)
            said: list[int] = []
            data = b""
            while len(said) < _MAX_TOKENS and not data.endswith(_STOP):
                choice = _native.sample(logits, 1.0, top_p, 0, 0.0, seed, len(said))
                if choice == 0:
                    break
                said.append(choice)
                data += self._tokens[choice]
                logits, state = self._model.forward([choice], state)
            yield _judge(data, said)


def _judge(data: bytes, said: list[int]) -> Answer:
    text = data.decode("utf-8", "replace")
    ended = text.endswith("\n\n") and len(said) <= _MAX_TOKENS
    grams = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    return Answer(
        text.strip(),
        ended and bool(text.strip()),
        len(set(grams)) < len(grams),
        "User:" in text or "Assistant:" in text,
    )


@torch.no_grad()
def bits_per_byte(model: Trainee, held_out: Source, n_bytes: int, limit: int = 300) -> float:
    """Bits per byte of held-out documents, each from an empty state, whole or its first tokens."""
    nats = 0.0
    count = 0
    for document in range(min(limit, held_out.n_documents)):
        start, end = held_out.starts[document], held_out.starts[document + 1]
        ids = torch.from_numpy(held_out.ids[start : min(end, start + 1024)].astype("int64"))[None]
        nats += loss_of(model, ids, torch.zeros_like(ids), False, False).item() * (ids.numel() - 1)
        count += ids.numel() - 1
    per_token = n_bytes / len(held_out.ids)
    return nats / count / per_token / math.log(2)


def _transcripts(speaker: Speaker) -> tuple[str, dict[str, float]]:
    lines: list[str] = []
    answers: list[Answer] = []
    for title, chats in (("The 20 prompts", PROMPTS), ("Turns from outside its text", UNSEEN)):
        lines.append(f"\n### {title}\n")
        for turns in chats:
            for seed in (1, 2, 3):
                given = list(speaker.chat(turns, seed))
                answers += given
                for turn, answer in zip(turns, given, strict=True):
                    lines.append(f"- **{turn}** {answer.text}")
    total = len(answers)
    rates = {
        "answers": total,
        "clean_stop": sum(a.clean for a in answers) / total,
        "repeated_4_gram": sum(a.repeats for a in answers) / total,
        "leaked_label": sum(a.leaks for a in answers) / total,
    }
    return "\n".join(lines) + "\n", rates


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="rwkv_chat.training.judge", description=__doc__)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    text, rates = _transcripts(Speaker(options.package))
    (options.run / "transcripts.md").write_text(text, encoding="utf-8")
    log.info("%s", rates)
    weights, spec, _ = open_trained(options.run)
    model = Trainee(Shape(spec.n_layer, spec.n_embd, spec.vocab_size))
    model.load_state_dict(weights)
    packed = open_packed(options.packed)
    bits = {
        name: bits_per_byte(model, held_out, packed.bytes_held_out[name])
        for name, held_out in packed.held_out.items()
    }
    log.info("%s", bits)
    record = {"bits_per_byte": bits, **rates}
    (options.run / "judged.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
