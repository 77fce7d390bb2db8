"""`rwkv-chat tune`, run as a Unix user runs it."""

import importlib.util
import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_chat.commands import tune as tune_command
from rwkv_chat.errors import UsageError
from tests.tiny import load, model_file

COMMAND = [sys.executable, "-m", "rwkv_chat", "tune"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}  # threads of a model this small only wait
LINES = "\n\n".join(f"User: {n}\nAssistant: {n + 1}, matey" for n in range(12))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text(LINES)
    return path


def tune(*arguments: str | Path, model: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments), "--model", str(model or model_file())],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT},
    )


def test_it_writes_both_files_and_reports_the_held_out_loss(text: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "a.state", tmp_path / "a.pth"
    few = ("--steps", "12", "--batch", "3", "--length", "32", "--weights", "f32")
    done = tune(text, "--out", out, "--time-state", other, *few)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    lines = done.stderr.splitlines()
    assert lines[0].endswith("learning from 10 pieces of text, choosing by 1, judged by 1")
    assert lines[1].startswith("This will be slow")
    assert lines[2].startswith("step 0/12: loss ")
    assert lines[-1].startswith("loss on the held-out part, in nats a token: ")
    before, after = (float(word) for word in lines[-1].split() if word[0].isdigit() and "." in word)
    assert after < before
    state = load("f32").load_state(out)
    assert state.tokens == 0
    stored = torch.load(other, weights_only=True)
    assert list(stored) == ["blocks.0.att.time_state", "blocks.1.att.time_state"]
    layers = state.data.reshape(2, -1)[:, 32:-32]
    assert np.array_equal(torch.stack(list(stored.values())).numpy().reshape(2, -1), layers)
    assert out.stat().st_mode & 0o777 == other.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_best_so_far(number: signal.Signals, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.state"
    options = ("--steps", "1000000", "--length", "8", "--weights", "f32", "--out", str(out))
    process = subprocess.Popen(
        [*COMMAND, str(text), *options, "--model", str(model_file())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 0/"):
            break
    os.kill(process.pid, number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stdout == f"{out}\n"
    assert "stopped after" in stderr
    assert "held-out" in stderr
    assert "Traceback" not in stderr
    assert load("f32").load_state(out).tokens == 0


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("missing.txt", "--out", "a.state"), 2, "no file missing.txt"),
        (("empty.txt", "--out", "a.state"), 2, "empty.txt is empty"),
        (("short.txt", "--out", "a.state"), 2, "too short"),
        (("lines.txt", "--out", "nowhere/a.state"), 2, "no folder nowhere"),
        (("lines.txt", "--out", "."), 2, "is a folder"),
        (("lines.txt", "--out", "lines.txt"), 2, "different files"),
        (("lines.txt", "--out", "a.state", "--time-state", "./a.state"), 2, "different files"),
        (("lines.txt",), 2, "--out"),
        (("lines.txt", "--out", "a.state", "--rate", "0"), 2, "above 0"),
        (("lines.txt", "--out", "a.state", "--rate", "nan"), 2, "above 0"),
        (("lines.txt", "--out", "a.state", "--steps", "0"), 2, "at least 1"),
    ],
)
def test_a_refusal_is_a_sentence(
    arguments: tuple[str, ...],
    code: int,
    sentence: str,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(text.parent)
    (text.parent / "empty.txt").write_text("\n")
    (text.parent / "short.txt").write_text("Only one.")
    done = tune(*arguments)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (text.parent / "a.state").exists()


def test_a_model_of_another_generation_is_named(text: Path, tmp_path: Path) -> None:
    done = tune(text, "--out", tmp_path / "a.state", model=model_file("6"))
    assert done.returncode == 1
    assert "tiny6 is an RWKV-6 model. Only RWKV-7 models can be tuned." in done.stderr


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install torch"):
        tune_command.run(Namespace())


def test_a_vocabulary_of_another_model_is_refused(text: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("1 'a' 1\n", encoding="utf-8")
    out = tmp_path / "a.state"
    result = tune(text, "--tokenizer", wrong, "--out", out)
    assert (result.returncode, out.exists()) == (1, False), result.stderr
    assert str(wrong) in result.stderr
