"""Bits per byte through the engine, compared with torch."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from rwkv_chat import paths
from rwkv_chat.engine.select import load_model
from rwkv_chat.errors import UsageError
from rwkv_chat.training.measure import bits_per_byte, documents_of
from rwkv_chat.training.pack import is_held_out

DOCUMENTS = [
    ["User: Hi!\n\nAssistant:", " Hello! 你好\n\n"],
    ["A fox."],
    ["One day it rained. " * 9],
]


def test_it_is_what_torch_finds() -> None:
    model = load_model(paths.bundled("model.safetensors"), "f32", threads=1)
    nats, size = 0.0, 0
    for pieces in DOCUMENTS:
        ids = [0, *(i for piece in pieces for i in model.tokenizer.encode(piece)), 0]
        state = None
        for before, after in pairwise(ids):
            logits, state = model.forward([before], state)
            nats -= torch.tensor(logits).double().log_softmax(0)[after].item()
        size += len("".join(pieces).encode())
    expected = nats / size / math.log(2)
    assert bits_per_byte(model, DOCUMENTS) == pytest.approx(expected, rel=1e-9)


def test_rows_are_read_as_they_are_packed(tmp_path: Path) -> None:
    rows = [{"turns": [f"What is {number}?", "A number."]} for number in range(300)]
    for name in ("own", "topical_chat"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    every = list(documents_of(tmp_path / "own.jsonl"))
    assert every[7] == ["User: What is 7?\n\nAssistant:", " A number.\n\n"]
    held = list(documents_of(tmp_path / "own.jsonl", held_out=True))
    assert len(held) == sum(map(is_held_out, rows)) < 20
    assert next(documents_of(tmp_path / "topical_chat.jsonl"))[1] == "Alice: A number.\n\n"


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    model = load_model(paths.bundled("model.safetensors"), "f32", threads=1)
    with pytest.raises(UsageError, match="no text"):
        bits_per_byte(model, [])
    (tmp_path / "a.jsonl").write_text("{", encoding="utf-8")
    for path in (tmp_path / "absent.txt", tmp_path / "a.jsonl"):
        with pytest.raises(UsageError, match=path.name):
            list(documents_of(path))
