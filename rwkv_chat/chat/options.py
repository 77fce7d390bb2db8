"""The choices of one conversation, kept with it as a JSON object."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from rwkv_chat.chat.own import Own, named
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.templates import Template, Think
from rwkv_chat.errors import UsageError

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """How answers are made. `template` "" means the one that fits the model,
    "own" the one in `own`. `model` is the name under which the model is opened, "" for none yet.

    `system` opens the conversation when it is not empty; `think` names a thinking mode;
    `max_tokens` bounds one answer. `start` is the full path of a trained start state, "" for none.

    Raises:
        UsageError: a value that cannot be used, with its name.
    """

    sampling: Sampling = field(default_factory=Sampling)
    system: str = ""
    think: str = "off"
    template: str = ""
    max_tokens: int = 500
    start: str = ""
    own: Own = field(default_factory=Own)
    model: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= 1_000_000:
            raise UsageError(f"max_tokens must lie between 1 and 1000000, not {self.max_tokens}.")
        Think(self.think)
        if self.template:
            named(self.template, self.own)

    def written_as(self, fitting: str) -> Template:
        """The template of new turns; `fitting` names the one that fits the model."""
        return named(self.template or fitting, self.own)

    def to_json(self) -> dict[str, object]:
        """A JSON object from which `from_json` makes an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, object], base: "Options") -> "Options":
        """The choices in `data`, and those of `base` where `data` has none or an unusable one.

        Only the start state is never that of `base`: what was said without one goes on without.
        """
        options = replace(base, start="")
        for name, value in data.items():
            with suppress(UsageError):
                options = replace(options, **_choice(name, value, base))  # type: ignore[arg-type]
        return options


def _choice(name: str, value: object, base: Options) -> dict[str, object]:
    if name == "sampling" and isinstance(value, Mapping):
        return {name: Sampling(**_known(Sampling, value))}
    if name == "own" and isinstance(value, Mapping):
        return {name: Own(**_known(Own, value))}
    is_known = name in {f.name for f in fields(Options)} - {"sampling", "own"}
    return {name: value} if is_known and type(value) is type(getattr(base, name)) else {}


def _known(kind: type[Sampling] | type[Own], values: Mapping[str, object]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
