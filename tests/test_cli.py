"""The commands, run as a Unix user runs them."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rwkv_chat import paths
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.tree import Finish
from tests.tiny import Desk, load, model_file

COMMAND = [sys.executable, "-m", "rwkv_chat"]


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        errors="replace",
        **source,
    )


def ask(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return run("ask", *arguments, "--model", str(model_file()), "--max-tokens", "40", stdin=stdin)


def log() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("log", "--json").stdout)
    return found


def start_long_answer(*more: str) -> subprocess.Popen[str]:
    """An answer that does not end; returns when some of it was printed."""
    process = subprocess.Popen(
        [*COMMAND, "ask", "Hello", "--model", str(model_file()), "--max-tokens", "1000000", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    assert process.stdout.read(20)
    return process


def test_a_seed_gives_the_same_answer_again() -> None:
    first, second = ask("Hello", "--seed", "1"), ask("Hello", "--seed", "1")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout != ""
    assert first.stderr == ""
    assert ask("Hello", "--seed", "2").stdout != first.stdout


def test_json_says_all_of_it() -> None:
    answer = json.loads(ask("Hello", "--seed", "1", "--json").stdout)
    [conversation] = log()
    assert answer["conversation"] == conversation["id"]
    assert answer["turn"] == conversation["head"]
    assert answer["text"] == conversation["turns"][-1]["text"]
    assert answer["tokens"] == 40
    assert answer["finish"] == "length"


def test_text_may_come_from_stdin() -> None:
    assert ask("-", stdin="From a pipe").returncode == 0
    assert log()[0]["turns"][0]["text"] == "From a pipe"


def test_raw_text_is_continued_without_a_template() -> None:
    assert ask("Once upon", "--raw").returncode == 0
    assert [turn["role"] for turn in log()[0]["turns"]] == ["text", "assistant"]


def test_an_answer_goes_on_from_an_earlier_turn() -> None:
    first = json.loads(ask("One", "--seed", "1", "--json").stdout)
    assert ask("Two", "--from", first["turn"]).returncode == 0
    assert ask("Other", "--from", first["turn"][-6:]).returncode == 0
    [conversation] = log()
    parents = [t["parent"] for t in conversation["turns"] if t["text"] in ("Two", "Other")]
    assert parents == [first["turn"]] * 2
    drawing = run("log").stdout
    assert "├ " in drawing
    assert "└ " in drawing


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ask", ""], 2, "nothing to ask"),
        (["ask", "x", "--model", "no-such-model"], 1, "no-such-model"),
        (["ask", "x", "--model", __file__], 1, Path(__file__).name),
        (["ask", "x", "--top-p", "7"], 2, "top_p"),
        (["ask", "x", "--seed", "-1"], 2, "seed"),
        (["ask", "x", "--max-tokens", "0"], 2, "at least 1"),
        (["ask", "x", "--from", "nowhere"], 1, "nowhere"),
        (["models", "info", "no-such-model"], 1, "no-such-model"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_a_failure_is_a_sentence_on_stderr(arguments: list[str], code: int, words: str) -> None:
    result = run(*arguments)
    assert result.returncode == code
    assert result.stdout == ""
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_interrupting_keeps_the_partial_answer() -> None:
    process = start_long_answer()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    answer = log()[0]["turns"][-1]
    assert answer["finish"] == "cancelled"
    assert len(answer["text"]) >= 20


def test_a_killed_answer_goes_on_as_if_nothing_had_happened() -> None:
    process = start_long_answer("--seed", "3")
    time.sleep(2.5)
    process.kill()
    process.communicate(timeout=20)

    desk = Desk(paths.data_dir(), load("bf16"), Options(Sampling(seed=3), max_tokens=1))
    [summary] = desk.session.conversations()
    question, partial = desk.session.load(summary.id).path()
    assert question.text == "Hello"
    assert partial.finish is Finish.PARTIAL
    assert len(partial.text) >= 20
    continued = desk.go_on(summary.id, 50).path()[-1]
    generated = len(continued.ids) - continued.prefix
    assert generated == len(partial.ids) - partial.prefix + 50
    desk.session.configure(None, max_tokens=generated)
    assert desk.ask("Hello").path()[-1].ids == continued.ids
    desk.close()


def test_a_reader_that_leaves_is_no_catastrophe() -> None:
    process = start_long_answer()
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    assert log()[0]["turns"][-1]["finish"] == "cancelled"


def test_without_a_terminal_stdin_is_answered() -> None:
    arguments = ["--model", str(model_file())]
    result = run(*arguments, stdin="")
    assert result.returncode == 0, result.stderr
    assert "Hello" in result.stderr
    assert result.stdout.strip()
    assert run(*arguments, stdin="What is this?").returncode == 0
    assert log()[0]["turns"][0]["text"] == "What is this?"


def test_only_the_owner_can_read_what_is_written(home: Path) -> None:
    before = os.umask(0)
    try:
        ask("A secret")
    finally:
        os.umask(before)
    for path in (home, *home.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:o}"


def test_info_tells_of_a_file_without_loading_it() -> None:
    found = json.loads(run("models", "info", str(model_file()), "--json").stdout)
    assert found["spec"]["n_layer"] == 2
    assert found["tokenizer"] == "bytes"
    assert "RWKV-7" in run("models", "info", str(model_file())).stdout


def test_converting_prints_the_path() -> None:
    result = run("models", "convert", str(model_file()), "--weights", "f32")
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_file()


def test_an_empty_log_says_how_to_begin() -> None:
    assert "rwkv-chat ask" in run("log").stdout
    assert log() == []


def test_bench_measures(home: Path) -> None:
    arguments = ["--weights", "f32", "--threads", "1", "--prompt-tokens", "16"]
    result = run(
        "bench", "--model", str(model_file()), *arguments, "--decode-tokens", "4", "--json"
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["weights"] == "f32"
    assert found["threads"] == found["batch"] == 1
    assert found["decode_tokens_per_s"] > 0
    assert found["prefill_tokens_per_s"] > 0
    assert 0 < found["ffn_zero_fraction"] < 1
    assert found["read_bandwidth_bytes_per_s"] > 1e8
    assert found["bandwidth_fraction"] > 0
    assert found["peak_rss_bytes"] > 1e6
