"""The commands, run as a Unix user runs them."""

import json
import os
import queue
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rwkv_chat import paths
from rwkv_chat.chat import events
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.session import Session
from rwkv_chat.chat.tree import Finish, Role, Turn
from rwkv_chat.commands import ask as ask_command
from rwkv_chat.commands import chat as chat_command
from rwkv_chat.commands import compose, doctor
from rwkv_chat.commands import log as log_command
from rwkv_chat.commands.arguments import parser
from rwkv_chat.engine.model import Model
from rwkv_chat.errors import EngineError, SettingsError
from rwkv_chat.settings import Settings
from rwkv_chat.store.conversations import Conversations
from rwkv_chat.weights import WEIGHTS
from tests.ggml_files import Kind, write_gguf, write_rwkvcpp
from tests.seeded import official, random_weights, shared_model, small_spec
from tests.tiny import Desk, load, model_file

COMMAND = [sys.executable, "-m", "rwkv_chat"]
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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


def in_shell(line: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of sh in which "$@" is the program with `arguments`."""
    return subprocess.run(
        ["sh", "-c", line, "sh", *COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        errors="replace",
        env={**os.environ, **environment},
    )


def start_long_answer(*more: str, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """An answer that does not end; returns when some of it was printed."""
    endless = ("--model", str(model_file()), "--max-tokens", "1000000")
    process = subprocess.Popen(
        [*wrapper, *COMMAND, "ask", "Hello", *endless, *more],
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
    assert answer["tokens"] == conversation["turns"][-1]["tokens"] == 40
    assert answer["finish"] == "length"


def test_the_printed_seed_gives_the_same_answer_again() -> None:
    drawn = json.loads(ask("Hello", "--json").stdout)
    again = json.loads(ask("Hello", "--json", "--seed", str(drawn["seed"])).stdout)
    assert again["text"] == drawn["text"]
    assert again["seed"] == drawn["seed"]


def test_a_trained_start_state_changes_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load().spec
    size = (spec.n_head, spec.head_size, spec.head_size)
    states = {f"blocks.{n}.att.time_state": 3e4 * torch.randn(size) for n in range(spec.n_layer)}
    torch.save(states, tmp_path / "start.pth")
    plain = json.loads(ask("Hello", "--seed", "1", "--json").stdout)
    tuned = json.loads(ask("Hello", "--seed", "1", "--json", "--state", "start.pth").stdout)
    assert tuned["text"] != plain["text"]
    more = ("--from", tuned["turn"], "--seed", "1")
    assert ask("And?", *more).returncode == 0  # the conversation knows where it began
    (tmp_path / "start.pth").unlink()
    gone = ask("And?", *more)
    assert gone.returncode == 1
    assert "start.pth of this conversation is not there" in gone.stderr


def test_new_conversations_of_the_interface_begin_with_a_state(tmp_path: Path) -> None:
    path = tmp_path / "start.pth"
    layers = range(load().spec.n_layer)
    torch.save({f"blocks.{n}.att.time_state": torch.randn(2, 16, 16) for n in layers}, path)
    older = json.loads(ask("Hello", "--json").stdout)["conversation"]
    for place in (("--state", str(path)), ("chat", "--state", str(path))):
        assert run(*place, "--model", str(model_file()), stdin="Hello").returncode == 0
    with Conversations.open(paths.data_dir()) as store:
        starts = {each.id: store.load(each.id).settings["start"] for each in store.conversations()}
    assert starts.pop(older) == ""
    assert list(starts.values()) == [str(path)] * 2
    gone = run("--state", str(tmp_path / "none.pth"))
    assert gone.returncode == 2
    assert "none.pth is not there" in gone.stderr


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
        (["ask", "x", "--from", ""], 1, "No turn"),
        (["ask", "x", "--model", "~nosuch/x"], 2, "home folder in '~nosuch/x'"),
        (["models", "info", "~nosuch/x"], 2, "home folder in '~nosuch/x'"),
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


def test_what_is_chosen_for_one_answer_does_not_change_the_conversation() -> None:
    first = json.loads(ask("One", "--seed", "1", "--json").stdout)
    flags = ("--seed", "9", "--temperature", "0.5", "--raw", "--json")
    second = json.loads(ask("Two", "--from", first["turn"], *flags).stdout)
    assert second["seed"] == 9
    with Conversations.open(paths.data_dir()) as store:
        conversation = store.load(first["conversation"])
    assert conversation.path()[-2].role is Role.TEXT
    kept = Options.from_json(conversation.settings, Options(max_tokens=1))
    assert kept == Options(Sampling(seed=1), max_tokens=40, model=str(model_file()))


def test_a_conversation_is_gone_on_with_by_the_model_that_it_remembers(tmp_path: Path) -> None:
    first = json.loads(ask("One", "--json").stdout)
    other = shutil.copy(model_file(), tmp_path / "other.pth")
    flags = ("--from", first["turn"], "--max-tokens", "5", "--json")
    found = [run("ask", "Two", *flags, *more) for more in ((), ("--model", other))]
    assert [json.loads(result.stdout)["model"] for result in found] == ["tiny", "other"]
    with Conversations.open(paths.data_dir()) as store:
        settings = store.load(first["conversation"]).settings
    assert settings["model"] == str(model_file())


@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_keeps_the_partial_answer(number: signal.Signals) -> None:
    process = start_long_answer()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    answer = log()[0]["turns"][-1]
    assert answer["finish"] == "cancelled"
    assert len(answer["text"]) >= 20


def test_an_ignored_signal_stays_ignored() -> None:
    process = start_long_answer(wrapper=("sh", "-c", 'trap "" HUP; exec "$@"', "sh"))
    process.send_signal(signal.SIGHUP)
    assert process.stdout is not None
    assert process.stdout.read(20_000)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_signal_during_the_imports_is_no_catastrophe() -> None:
    script = """
import sys
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "argparse":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from rwkv_chat.cli import main
sys.exit(main(["log"]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 130
    assert result.stderr == ""


class Answering:
    """As much of a Session as one answer needs."""

    def __init__(self, *, busy: bool) -> None:
        self._busy = busy
        self.stopped: list[str] = []

    def busy(self, conversation: str) -> bool:
        return self._busy

    def stop(self, conversation: str) -> None:
        self.stopped.append(conversation)


def interrupt(*arguments: object) -> str:
    raise KeyboardInterrupt


def follow(session: Answering, *told: events.Event) -> int:
    inbox: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
    for event in told:
        inbox.put(event)
    return ask_command._follow(session, "c", inbox, as_json=False)  # type: ignore[arg-type]


def test_an_interruption_of_the_last_event_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_command, "_print_rest", interrupt)
    turn = Turn(id="t", conversation="c", parent=None, seq=1, role=Role.ASSISTANT, text="x")
    session = Answering(busy=False)
    assert follow(session, events.AnswerFinished("c", turn)) == 130
    assert session.stopped == ["c"]


def test_the_second_interruption_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_command, "_print_rest", interrupt)
    grew = events.AnswerGrew("c", "t", "text", 1, 1.0)
    session = Answering(busy=True)
    with pytest.raises(KeyboardInterrupt):
        follow(session, grew, grew)
    assert session.stopped == ["c"]


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", [("ask", "Hello"), ("log",), ("models", "list")])
def test_output_that_cannot_be_written_is_a_sentence(command: tuple[str, ...]) -> None:
    ask("Before")
    more = ("--model", str(model_file()), "--max-tokens", "40") if command[0] == "ask" else ()
    result = in_shell('"$@" >/dev/full', *command, *more)
    assert result.returncode == 1
    assert result.stderr == "rwkv-chat: Reading or writing failed: No space left on device.\n"
    assert in_shell('"$@" >/dev/full 2>&1', *command, *more).returncode == 1


@pytest.mark.parametrize(
    ("line", "text", "code"),
    [('"$@" <&-', "-", 2), ('"$@" >&-', "x", 0), ('"$@" 2>&-', "x", 0), ('"$@" 2>&-', "", 2)],
)
def test_a_closed_stream_is_no_catastrophe(line: str, text: str, code: int) -> None:
    result = in_shell(line, "ask", text, "--model", str(model_file()), "--max-tokens", "40")
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert len(log()) == (code == 0)


def test_bytes_that_are_no_text_are_read_and_written_with_marks() -> None:
    more = ("--model", str(model_file()), "--max-tokens", "40")
    result = in_shell("printf 'caf\\303\\251 \\377' | \"$@\"", "ask", "-", *more)
    assert result.returncode == 0, result.stderr
    assert log()[0]["turns"][0]["text"] == "café \ufffd"
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    result = in_shell('"$@"', "ask", "Wie geht's, Jürgen?", *more, **ascii_only)
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii()
    assert "caf? ?" in in_shell('"$@"', "log", **ascii_only).stdout
    answer = json.loads(in_shell('"$@"', "ask", "é", "--json", *more, **ascii_only).stdout)
    assert answer["text"] == log()[0]["turns"][-1]["text"]


def test_a_home_that_does_not_exist_is_a_sentence() -> None:
    result = in_shell('"$@"', "log", RWKV_CHAT_HOME="~nosuch/x")
    assert result.returncode == 1
    assert result.stderr.startswith("rwkv-chat: RWKV_CHAT_HOME is ~nosuch/x")


def test_a_window_leaves_what_another_has_deleted() -> None:
    with Conversations.open(paths.data_dir()) as other:
        deleted = other.create("", {}).id
        other.delete(deleted)
        assert ask("Hello").returncode == 0
        other.restore(deleted)


def test_erasing_that_is_owed_is_done_at_the_end() -> None:
    owed = paths.ensure_private(paths.data_dir()) / "erasing"
    owed.touch()
    assert ask("Hello").returncode == 0
    assert not owed.exists()


def test_a_session_that_cannot_close_does_not_keep_the_store_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(session: Session) -> None:
        raise EngineError("It does not end.")

    monkeypatch.setattr(Session, "close", fail)
    closed: list[Conversations] = []
    close = Conversations.close
    monkeypatch.setattr(Conversations, "close", lambda s: (close(s), closed.append(s)))
    with (
        pytest.raises(EngineError, match="It does not end"),
        compose.open_session(Settings(), Options()),
    ):
        assert closed == []
    assert len(closed) == 1


def test_the_log_counts_what_the_model_has_said() -> None:
    with Conversations.open(paths.data_dir()) as store:
        home = store.create("", {}).id
        turn = Turn("", home, None, 0, Role.ASSISTANT, "x", ids=(1, 2, 3, 4, 5), prefix=2)
        store.append(turn)
    assert log()[0]["turns"][0]["tokens"] == 3


def test_a_conversation_that_vanishes_is_not_listed() -> None:
    with Conversations.open(paths.data_dir()) as store:
        stays, goes = store.create("stays", {}), store.create("goes", {})
        summaries = store.conversations()
        store.delete(goes.id)
        late = SimpleNamespace(conversations=lambda: summaries, load=store.load)
        found = [c.id for c in log_command._load(late)]  # type: ignore[arg-type]
        assert found == [stays.id]


def test_what_the_interface_remembers_is_read_at_the_next_start() -> None:
    Settings(threads=3).save()
    chat_command._remember(theme="nord", model="mine")
    chat_command._remember(sampling=Sampling(temperature=0.5), max_tokens=77)
    assert Settings.load() == Settings(
        threads=3, theme="nord", model="mine", sampling=Sampling(temperature=0.5), max_tokens=77
    )
    for model, tokenizer in (("mine", "own.json"), ("other", "")):
        replace(Settings.load(), model="mine", tokenizer="own.json").save()
        chat_command._remember(model=model)
        assert Settings.load().tokenizer == tokenizer
    Settings.path().write_text("nonsense")
    with pytest.raises(SettingsError, match="not valid TOML"):
        chat_command._remember(theme="nord")


def test_an_instruction_set_that_is_not_there_is_found_by_doctor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert doctor._guard("core", doctor._core).ok
    monkeypatch.setenv("RWKV_CHAT_ISA", "bogus")
    finding = doctor._guard("core", doctor._core)
    assert not finding.ok
    assert "RWKV_CHAT_ISA is bogus" in finding.text
    assert "scalar" in finding.text


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
    assert found["converted"] == {}
    assert found["fits"] == dict.fromkeys(WEIGHTS, True)
    assert found["memory_bytes"]["bf16"] < found["memory_bytes"]["f32"] < 1 << 20
    rows = info()
    assert rows["generation"] == "RWKV-7"
    assert rows["layers"] == "2"
    assert rows["width"] == "32, hidden 128"
    assert rows["heads"] == "2 of 16"
    assert rows["vocabulary"] == "256 tokens"
    assert rows["template"] == "raw"
    assert rows["type in the file"] == "F32"
    assert rows["fits into memory"].startswith(" and ".join(WEIGHTS))
    assert {f"as {weights}" for weights in WEIGHTS} <= rows.keys()
    assert rows["converted"] == "no"
    made = run("models", "convert", str(model_file()), "--weights", "f32").stdout.strip()
    assert info()["converted"] == f"f32: {made}"
    assert info(made)["format"] == "rwkv-chat"


def info(path: str | Path | None = None) -> dict[str, str]:
    """The table of `models info`; every value begins in the same column."""
    result = run("models", "info", str(path or model_file()))
    assert result.returncode == 0, result.stderr
    return {line[:16].strip(): line[18:] for line in result.stdout.splitlines()}


def test_info_says_what_adapters_and_start_states_are_for(tmp_path: Path) -> None:
    for name, what in (("att.time_state", "--state FILE"), ("att.key.lora_A", "--lora FILE")):
        torch.save({f"blocks.0.{name}": torch.ones(2, 2, 2)}, tmp_path / "x.pth")
        result = run("models", "info", str(tmp_path / "x.pth"))
        assert result.returncode == 1
        assert what in result.stderr


def test_an_adapter_becomes_a_model_with_a_name(tmp_path: Path) -> None:
    path = tmp_path / "poet.pth"
    torch.save({f"blocks.0.att.key.lora_{part}": torch.ones(32, 32) for part in "AB"}, path)
    merge = ("models", "convert", str(model_file()), "--lora", str(path))
    refused = run(*merge)
    assert refused.returncode == 2
    assert "--lora-alpha" in refused.stderr
    made = run(*merge, "--lora-alpha", "8", "--output", "poet")
    assert made.returncode == 0, made.stderr
    assert "poet " in run("models", "list").stdout
    assert run("ask", "Hello", "--model", "poet", "--max-tokens", "5").returncode == 0
    assert run(*merge, "--lora-alpha", "8", "--output", "poet").returncode == 2
    assert run("models", "convert", str(model_file()), "--lora-alpha", "8").returncode == 2


def test_info_names_the_tensors_that_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "more.pth"
    tensors = torch.load(model_file(), weights_only=True)
    torch.save({**tensors, "blocks.0.att.v0": torch.zeros(3)}, path)
    assert "not used          blocks.0.att.v0" in run("models", "info", str(path)).stdout


@pytest.mark.parametrize("kind", ["gguf", "bin"])
def test_quantised_files_answer_like_all_others(kind: str, tmp_path: Path) -> None:
    spec = small_spec(vocab_size=300)
    path = tmp_path / f"quantised.{kind}"
    if kind == "gguf":
        tokens = [bytes([byte]) for byte in range(256)]
        write_gguf(path, random_weights(spec), spec, Kind.Q8_0, tokens=tokens)
    else:
        spec = small_spec(vocab_size=256)
        write_rwkvcpp(path, official(random_weights(spec)), Kind.Q5_1)
    found = json.loads(run("models", "info", str(path), "--json").stdout)
    assert found["format"] == {"gguf": "gguf", "bin": "rwkv.cpp"}[kind]
    assert found["tokenizer"] == {"gguf": "inside", "bin": "bytes"}[kind]
    assert run("models", "convert", str(path), "--weights", "bf16").returncode == 0
    result = run("ask", "--model", str(path), "--max-tokens", "5", "--seed", "1", "Hello", "--json")
    assert result.returncode == 0, result.stderr
    assert 0 < json.loads(result.stdout)["tokens"] <= 5


def test_info_says_how_far_a_model_remembers() -> None:
    text = run("models", "info", str(model_file("1"))).stdout
    assert "generation        RWKV-1\n" in text
    assert "remarks           remembers at most 14 tokens; whenever" in text
    assert "remembers" not in run("models", "info", str(model_file())).stdout


def test_ask_says_how_far_a_model_remembers() -> None:
    more = ("--max-tokens", "3", "--seed", "1", "--json")
    result = run("ask", "More than fourteen tokens.", "--model", str(model_file("1")), *more)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["tokens"] <= 3
    assert result.stderr.count("tiny1 remembers at most 14 tokens; whenever they are full") == 1
    assert "remembers" not in ask("Hello").stderr


def test_a_generation_may_be_named_and_is_remembered_by_convert() -> None:
    path = str(model_file("4"))

    def generation(*more: str) -> str:
        found = json.loads(run("models", "info", path, "--json", *more).stdout)
        return str(found["spec"]["generation"])

    assert (generation(), generation("--generation", "3")) == ("4", "3")
    answers = [
        run("ask", "Hi", "--model", path, "--max-tokens", "9", "--seed", "1", "--json", *more)
        for more in ((), ("--generation", "3"))
    ]
    assert [answer.returncode for answer in answers] == [0, 0], answers
    assert generation() == "4"
    assert run("models", "convert", path, "--generation", "3").returncode == 0
    assert generation() == "3"
    bench = run("bench", "--model", path)
    assert (bench.returncode, "no kernels for RWKV-3" in bench.stderr) == (2, True)
    for command in (["ask", "Hi", "--model"], ["bench", "--model"], ["models", "convert"]):
        wrong = run(*command, path, "--generation", "7")
        assert wrong.returncode in {1, 2}
        assert 'cannot be opened as generation "7". It can be opened as 3, 4.' in wrong.stderr
    assert generation() == "3"


def test_an_epsilon_may_be_given_and_is_remembered_by_convert() -> None:
    path = model_file("5.2")
    assert info(path)["group norm eps"] == "0.00064"
    assert "key eps" not in info(path)
    shown = run("models", "info", str(path), "--group-norm-eps", "1e-5").stdout
    assert "group norm eps    1e-05\n" in shown
    assert info(path)["group norm eps"] == "0.00064"
    made = run("models", "convert", str(path), "--group-norm-eps", "1e-5", "--weights", "f32")
    assert made.returncode == 0, made.stderr
    assert info(path)["group norm eps"] == "1e-05"
    found = Settings.load().overrides_of(path)
    assert found == {"group_norm_eps": 1e-5}
    kept = run("models", "convert", str(path), "--weights", "f32", "--output", "mine")
    assert kept.returncode == 0, kept.stderr
    assert info("mine")["group norm eps"] == "1e-05"
    settings = compose.choose(SimpleNamespace(model=str(path), weights="f32"))  # type: ignore[arg-type]
    assert compose.opener(settings)().spec.group_norm_eps == 1e-5
    with compose.open_session(settings, Options()) as session:
        heard: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
        session.subscribe(heard.put)
        session.open_model(str(path))
        while not isinstance(heard.get(timeout=30), events.ModelReady):
            pass
        model = session.model(str(path))
        assert isinstance(model, Model)
        assert model.spec.group_norm_eps == 1e-5

    old = model_file("3")
    assert info(old)["key eps"] == "1e-08"
    other = run("models", "info", str(old), "--key-eps", "1e-9").stdout
    assert "key eps           1e-09\n" in other


@pytest.mark.parametrize("value", ["0", "1", "nan", "inf", "-1e-5", "small"])
@pytest.mark.parametrize("option", ["--group-norm-eps", "--key-eps"])
def test_an_epsilon_is_checked(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["ask", "Hi", f"{option}={value}"])
    assert f"must be a number between 0 and 1, not {value}" in capsys.readouterr().err


def test_an_epsilon_that_the_model_has_not_is_refused() -> None:
    for command in (["ask", "Hi", "--model"], ["bench", "--model"], ["models", "convert"]):
        wrong = run(*command, str(model_file("4")), "--group-norm-eps", "1e-5")
        assert wrong.returncode in {1, 2}
        assert "RWKV-4 has no group norm" in wrong.stderr
        wrong = run(*command, str(model_file("4")), "--key-eps", "1e-5")
        assert "RWKV-4 adds no epsilon" in wrong.stderr
    assert Settings.load() == Settings()


def test_the_published_logits_come_out_with_the_epsilon_of_the_training() -> None:
    path = shared_model("tiny-rwkv-5v2-730K.pth")
    expected = np.load(shared_model("expected-logits-5v2-730K.npy"))
    arguments = ["bench", "--model", str(path), "--weights", "f32"]
    for more, right in (([], False), (["--group-norm-eps", "1e-5"], True)):
        settings = compose.choose(parser().parse_args([*arguments, *more]))
        logits, _ = compose.opener(settings)().forward([34, 105, 110])
        assert (np.abs(logits - expected).max() <= 1e-5) == right


@pytest.mark.parametrize("weights", WEIGHTS)
def test_converting_prints_the_path(weights: str) -> None:
    result = run("models", "convert", str(model_file()), "--weights", weights)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_file()


def test_an_empty_log_says_how_to_begin() -> None:
    assert "rwkv-chat ask" in run("log").stdout
    assert log() == []


@pytest.mark.parametrize(
    ("generation", "weights"),
    [("4", "f32"), ("5.2", "q4"), ("6", "q8"), ("7", "f32"), ("7", "q8"), ("7a", "q4")],
)
def test_bench_measures(home: Path, generation: str, weights: str) -> None:
    arguments = ["--weights", weights, "--threads", "1", "--prompt-tokens", "16"]
    path = str(model_file(generation))
    result = run("bench", "--model", path, *arguments, "--decode-tokens", "4", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["generation"] == generation
    assert found["weights"] == weights
    assert found["threads"] == found["batch"] == 1
    assert found["decode_tokens_per_s"] > 0
    assert found["prefill_tokens_per_s"] > 0
    assert 0 < found["ffn_zero_fraction"] < 1
    assert found["read_bandwidth_bytes_per_s"] > 1e8
    assert found["bandwidth_fraction"] > 0
    assert found["peak_rss_bytes"] > 1e6


def test_bench_compares(home: Path) -> None:
    work = ["--prompt-tokens", "8", "--decode-tokens", "2", "--rounds", "2"]
    result = run("bench", "--model", str(model_file()), "--compare", *work, "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert {row["weights"] for row in rows} == set(WEIGHTS)
    assert {row["threads"] for row in rows} >= {1}
    assert len(rows) == len(WEIGHTS) * len({row["threads"] for row in rows})
    table = run("bench", "--model", str(model_file()), "--compare", *work, "--weights", "bf16")
    assert table.returncode == 0, table.stderr
    assert "medians of 2 rounds" in table.stdout
    assert table.stdout.count("\nbf16 ") == len({row["threads"] for row in rows})


def test_bench_compares_nothing_that_does_not_open(home: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pth").write_bytes(b"no")
    result = run("bench", "--model", str(tmp_path / "no.pth"), "--compare")
    assert (result.returncode, result.stdout) == (1, "")
    assert "no.pth" in result.stderr
