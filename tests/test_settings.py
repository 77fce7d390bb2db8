"""The settings file: what is written is read back, and what means nothing is refused by name."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rwkv_chat.chat.own import Own, choices
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.templates import Think
from rwkv_chat.errors import SettingsError, UsageError
from rwkv_chat.settings import Settings
from rwkv_chat.weights import WEIGHTS

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
EPSILONS = st.floats(0, 1, exclude_min=True, exclude_max=True)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0, 10),
    top_p=st.floats(0, 1),
    top_k=st.integers(0, 1000),
    min_p=st.floats(0, 1),
    presence=st.floats(-10, 10),
    frequency=st.floats(-10, 10),
    decay=st.floats(0, 1),
    seed=st.none() | st.integers(0, 2**63 - 1),
)
SETTINGS = st.builds(
    Settings,
    model=TEXT,
    weights=st.sampled_from(WEIGHTS),
    threads=st.integers(0, 1024),
    tokenizer=TEXT,
    template=st.sampled_from(["", *choices()]),
    think=st.sampled_from(list(Think)).map(str),
    system=TEXT,
    max_tokens=st.integers(1, 1_000_000),
    theme=TEXT,
    store_budget_gb=st.floats(0.05, 1e6),
    sampling=SAMPLINGS,
    generations=st.dictionaries(TEXT, TEXT, max_size=3),
    group_norm_eps=st.dictionaries(TEXT, EPSILONS, max_size=3),
    key_eps=st.dictionaries(TEXT, EPSILONS, max_size=3),
    own=st.builds(
        Own,
        user=st.sampled_from(["Bob:", "<|user|>\n", "\u4f60"]),
        separator=st.sampled_from(["\n\n", "</s>", "\x7f"]),
        base=st.sampled_from(["chat", "g1", "raven-instruction"]),
    ),
)


def write(text: str | bytes) -> Path:
    path = Settings.path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_no_file_means_the_defaults() -> None:
    assert Settings.load() == Settings()
    assert not Settings.path().exists()
    assert Settings().weights == "bf16"
    assert Settings().max_tokens == 500
    assert Settings().store_budget == 2_000_000_000


@hypothesis_settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(SETTINGS)
def test_what_is_saved_is_loaded(settings: Settings) -> None:
    settings.save()
    assert Settings.load() == settings


def test_only_what_differs_is_written() -> None:
    Settings(threads=2, system='say "hi"\nnow \x7f 你', sampling=Sampling(seed=7)).save()
    lines = Settings.path().read_text(encoding="utf-8").splitlines()
    assert lines[1:] == [
        "threads = 2",
        'system = "say \\"hi\\"\\nnow \\u007f 你"',
        "",
        "[sampling]",
        "seed = 7",
    ]


def test_an_own_template_of_before_is_like_chat() -> None:
    write('[own]\nuser = "Me:"\n')
    assert Settings.load().own == Own(user="Me:", base="chat")


def test_how_a_file_is_opened_is_remembered(tmp_path: Path) -> None:
    first, second = tmp_path / "a.pth", tmp_path / 'b "c".pth'
    chosen = Settings(threads=2).with_overrides(first, {"generation": "3", "key_eps": 1e-9})
    chosen.with_overrides(second, {"group_norm_eps": 1e-5}).save()
    found = Settings.load()
    assert found.threads == 2
    assert found.overrides_of(first) == {"generation": "3", "key_eps": 1e-9}
    assert found.overrides_of(second) == {"group_norm_eps": 1e-5}
    assert found.overrides_of(tmp_path / "d.pth") == {}
    again = found.with_overrides(first, {"generation": "4"})
    assert again.overrides_of(first) == {"generation": "4", "key_eps": 1e-9}


@pytest.mark.parametrize("table", ["group_norm_eps", "key_eps"])
@pytest.mark.parametrize("value", ["0", "0.0", "1", "-1e-5", "nan", "inf", "true", '"1e-5"'])
def test_an_epsilon_of_nonsense_is_refused(table: str, value: str) -> None:
    write(f'[{table}]\n"/m.pth" = {value}\n')
    with pytest.raises(SettingsError, match=rf"{table}, .*/m.pth must (be|lie) .*Correct"):
        Settings.load()


def test_the_file_is_private_and_replaced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Settings(threads=1)
    old.save()
    path = Settings.path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SettingsError, match=r"settings\.toml: No space left.*RWKV_CHAT_HOME"):
        Settings(threads=2).save()
    assert Settings.load() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    target = tmp_path / "dotfiles.toml"
    target.write_text("threads = 3\n")
    path = Settings.path()
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    assert Settings.load().threads == 3
    Settings(threads=4).save()
    assert path.is_symlink()
    assert "threads = 4" in target.read_text()


def test_a_whole_number_does_for_a_number() -> None:
    write("store_budget_gb = 3\n[sampling]\ntemperature = 1\n")
    settings = Settings.load()
    assert settings.store_budget == 3_000_000_000
    assert settings.sampling == Sampling()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("thread = 2", "there is no setting thread. Did you mean threads?"),
        ("xyz = 2", "there is no setting xyz. Known are: model, tokenizer,"),
        ("[sampling]\ntop-p = 0.5", "no setting sampling.top-p. Did you mean sampling.top_p?"),
        ("[other]\na = 1", "there is no setting other."),
        ('threads = "2"', "threads must be a whole number, not '2'. Correct"),
        ("threads = true", "threads must be a whole number, not True"),
        ("threads = 2.0", "threads must be a whole number, not 2.0"),
        ("threads = -1", "threads must lie between 0 and 1024, not -1"),
        ("max_tokens = 0", "max_tokens must lie between"),
        ("store_budget_gb = nan", "store_budget_gb must lie between"),
        ("model = 7", 'model must be a text in "quotes", not 7'),
        ("model = 1979-05-27", "model must be a text"),
        ('weights = "q3"', "weights must be one of f32, bf16,"),
        ('template = "alpaca"', "no template 'alpaca'. Known are: chat, g1,"),
        ('think = "hard"', "no thinking mode 'hard'. Known are: off, fast, on, a bit, a lot"),
        ("[own]\nseparator = ''", "The separator of your template is empty"),
        ("[own]\nbot = 'B:'", "there is no setting own.bot."),
        ("sampling = 3", "sampling must be a table. Write a line [sampling]"),
        ("generations = 3", "generations must be a table. Write a line [generations]"),
        ("[generations]\n'/m.pth' = 3", '/m.pth must be a text in "quotes", not 3'),
        ("[sampling]\ntemperature = 20.0", "temperature must lie between 0.0 and 10.0"),
        ("[sampling]\ntemperature = inf", "temperature must be a number"),
        ("[sampling]\ntop_k = 1.5", "sampling.top_k must be a whole number"),
        ("[sampling]\nseed = -1", "seed must lie between"),
        ("threads = ", "is not valid TOML: "),
        (b"\xff\xfe", "is not valid TOML: "),
        ("a = " + "[" * 100_000, "is not valid TOML: "),
        ("# " + "x" * 2_000_000, "is larger than"),
    ],
)
def test_what_means_nothing_is_refused(text: str | bytes, says: str) -> None:
    path = write(text)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_folder_or_a_pipe_in_its_place_is_refused() -> None:
    path = Settings.path()
    path.mkdir(parents=True)
    with pytest.raises(SettingsError, match="not a regular file"):
        Settings.load()
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(SettingsError, match="not a regular file"):
        Settings.load()


def test_a_value_that_cannot_be_used_is_refused_in_code_too() -> None:
    with pytest.raises(UsageError, match="threads"):
        Settings(threads=5000)
