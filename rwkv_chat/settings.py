"""What a person has chosen for every conversation, in one TOML file that they may edit.

Only what differs from the defaults is written. Comments in the file are lost when the application
saves it.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rwkv_chat import paths
from rwkv_chat.chat.own import Own, named
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.templates import Think
from rwkv_chat.devices import check_device
from rwkv_chat.errors import SettingsError, UsageError
from rwkv_chat.files import replacing
from rwkv_chat.text.display import scrub
from rwkv_chat.weights import WEIGHTS

__all__ = ["Settings"]

_FILE = "settings.toml"
_MAX_BYTES = 1 << 20
_OVERRIDES = {"generation": "generations", "group_norm_eps": "group_norm_eps", "key_eps": "key_eps"}
_TABLES = ("sampling", "own", *_OVERRIDES.values())
_RANGES: dict[str, tuple[float, float]] = {
    "threads": (0, 1024),
    "max_tokens": (1, 1_000_000),
    "store_budget_gb": (0.05, 1e6),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings file as a value.

    `model` is a name or a path, "" the embedded one. `weights` is one of WEIGHTS. `threads` 0 means
    one for each physical core. `device` is cpu, auto, cuda or cuda:N. `tokenizer` names the
    vocabulary file of `model`, "" the one that is found. `template` "" means the one that fits the
    model, "own" the one in `own`. `think` names a thinking mode. `system` opens every new
    conversation. `max_tokens` bounds one answer. `theme` "" means the default one.
    `store_budget_gb` bounds the snapshots on disk, in units of 10^9 bytes. `generations` names the
    generation of RWKV for model files, by their absolute path, that are to be opened as another one
    than is found; `group_norm_eps` and `key_eps` likewise give their epsilons.

    Raises:
        UsageError: a value that cannot be used, named by its key.
    """

    model: str = ""
    tokenizer: str = ""
    weights: str = "bf16"
    threads: int = 0
    device: str = "cpu"
    template: str = ""
    think: str = "off"
    system: str = ""
    max_tokens: int = 500
    theme: str = ""
    store_budget_gb: float = 2.0
    sampling: Sampling = field(default_factory=Sampling)
    generations: Mapping[str, str] = field(default_factory=dict)
    group_norm_eps: Mapping[str, float] = field(default_factory=dict)
    key_eps: Mapping[str, float] = field(default_factory=dict)
    own: Own = field(default_factory=Own)

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            known = ", ".join(WEIGHTS)
            raise UsageError(f"weights must be one of {known}, not {self.weights!r}.")
        check_device(self.device)
        if self.template:
            named(self.template, self.own)
        Think(self.think)
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} must lie between {low} and {high}, not {value}.")
        for name in ("group_norm_eps", "key_eps"):
            for file, epsilon in getattr(self, name).items():
                if not 0 < epsilon < 1:
                    raise UsageError(
                        f"in {name}, the epsilon of {file:.200} must lie between 0 and 1, "
                        f"not {epsilon}."
                    )

    @property
    def store_budget(self) -> int:
        """The bound of the snapshots on disk, in bytes."""
        return round(self.store_budget_gb * 1e9)

    def overrides_of(self, path: Path) -> dict[str, Any]:
        """What was chosen for a model file: generation and epsilons, as `load_model` takes them."""
        key = str(path.absolute())
        tables = {name: getattr(self, table) for name, table in _OVERRIDES.items()}
        return {name: table[key] for name, table in tables.items() if key in table}

    def with_overrides(self, path: Path, given: Mapping[str, Any]) -> "Settings":
        """The same, but with these of `overrides_of` for a model file; the others stay."""
        tables: dict[str, Any] = {
            _OVERRIDES[name]: {**getattr(self, _OVERRIDES[name]), str(path.absolute()): value}
            for name, value in given.items()
        }
        return replace(self, **tables)

    @classmethod
    def path(cls) -> Path:
        """Where the settings file is, or would be."""
        return paths.config_dir() / _FILE

    @classmethod
    def load(cls) -> "Settings":
        """The settings in the file; the defaults where there is none.

        Raises:
            SettingsError: the file cannot be read, is not TOML, or holds a key or a value that
                means nothing; it names the file, the key and the remedy.
        """
        path = cls.path()
        table = _read(path)
        if table is None:
            return cls()
        sampling = _checked(path, table.pop("sampling", {}), Sampling(), "sampling.")
        generations = _texts(path, table.pop("generations", {}), "generations")
        group_norm_eps = _numbers(path, table.pop("group_norm_eps", {}), "group_norm_eps")
        key_eps = _numbers(path, table.pop("key_eps", {}), "key_eps")
        own = _checked(path, table.pop("own", {}), Own(), "own.")
        values = _checked(path, table, cls(), "")
        try:
            return cls(
                **values,  # type: ignore[arg-type]
                sampling=Sampling(**sampling),  # type: ignore[arg-type]
                own=Own(**own),  # type: ignore[arg-type]
                generations=generations,
                group_norm_eps=group_norm_eps,
                key_eps=key_eps,
            )
        except UsageError as error:
            raise SettingsError(f"{path}: {error} Correct the value or delete its line.") from error

    def save(self) -> None:
        """Replace the file, readable by its owner only; a crash leaves the old one or the new one.

        Raises:
            SettingsError: it cannot be written.
        """
        path = self.path()
        paths.ensure_private(path.parent)
        lines = ["# Settings of rwkv-chat; what is not here has its default value."]
        lines += _lines(self, Settings())
        for name in ("sampling", "own"):
            changed = _lines(getattr(self, name), getattr(Settings(), name))
            if changed:
                lines += ["", f"[{name}]", *changed]
        for name in _OVERRIDES.values():
            chosen = getattr(self, name)
            if chosen:
                lines += ["", f"[{name}]"]
                lines += [f"{_literal(k)} = {_literal(v)}" for k, v in chosen.items()]
        try:
            # A link, as people use for files under version control, stays a link.
            with replacing(path.resolve()) as file:
                file.write(("\n".join(lines) + "\n").encode("utf-8"))
        except OSError as error:
            raise SettingsError(
                f"Cannot write the settings file {path}: {error.strerror}. "
                "Free some space, or set RWKV_CHAT_HOME to a folder that can be written."
            ) from error


def _read(path: Path) -> dict[str, object] | None:
    """The file's TOML table; None where there is no file."""
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise SettingsError(f"{path} is not a regular file. Move it away and start again.")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(
            f"Cannot read the settings file {path}: {error.strerror}. Check who may read it."
        ) from error
    if len(data) > _MAX_BYTES:
        raise SettingsError(f"{path} is larger than {_MAX_BYTES} bytes. Move it away.")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"{path} is not valid TOML: {error}. "
            "Correct it, or move it away to start with the defaults."
        ) from error


def _checked(path: Path, table: object, defaults: object, prefix: str) -> dict[str, object]:
    """The values of a table, their keys and types compared with the fields of `defaults`."""
    table = _table(path, table, prefix.rstrip("."))
    types = {f.name: type(getattr(defaults, f.name)) for f in fields(defaults)}  # type: ignore[arg-type]
    for name in _TABLES:
        types.pop(name, None)
    values: dict[str, object] = {}
    for key, value in table.items():
        if key not in types:
            raise SettingsError(f"{path}: {_unknown(prefix, key, list(types))}")
        expected = int if key == "seed" else types[key]
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected:
            kind = {str: 'a text in "quotes"', int: "a whole number", float: "a number"}[expected]
            raise SettingsError(
                f"{path}: {prefix}{key} must be {kind}, not {value!r:.60}. "
                "Correct the value or delete its line."
            )
        values[key] = value
    return values


def _table(path: Path, table: object, key: str) -> Mapping[str, object]:
    if not isinstance(table, Mapping):
        raise SettingsError(
            f"{path}: {key} must be a table. Write a line [{key}] above its values."
        )
    return table


def _texts(path: Path, table: object, key: str) -> dict[str, str]:
    """The values of a table of texts."""
    values: dict[str, str] = {}
    for name, value in _table(path, table, key).items():
        if not isinstance(value, str):
            raise SettingsError(
                f'{path}: in {key}, {name:.60} must be a text in "quotes", not {value!r:.60}. '
                "Correct the value or delete its line."
            )
        values[name] = value
    return values


def _numbers(path: Path, table: object, key: str) -> dict[str, float]:
    """The values of a table of numbers."""
    values: dict[str, float] = {}
    for name, value in _table(path, table, key).items():
        if type(value) is not float and type(value) is not int:
            raise SettingsError(
                f"{path}: in {key}, {name:.60} must be a number, not {value!r:.60}. "
                "Correct the value or delete its line."
            )
        values[name] = value
    return values


def _unknown(prefix: str, key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"there is no setting {prefix}{key}. Did you mean {prefix}{close[0]}?"
    return f"there is no setting {prefix}{key}. Known are: {', '.join(known)}."


def _lines(values: object, defaults: object) -> list[str]:
    """One line of TOML for each field that differs from its default, tables left out."""
    names = [f.name for f in fields(values)]  # type: ignore[arg-type]
    changed = [n for n in names if getattr(values, n) != getattr(defaults, n) and n not in _TABLES]
    return [f"{name} = {_literal(getattr(values, name))}" for name in changed]


def _literal(value: object) -> str:
    if isinstance(value, str):
        # TOML's basic strings are JSON's, but for DEL, which TOML wants escaped.
        return json.dumps(scrub(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
