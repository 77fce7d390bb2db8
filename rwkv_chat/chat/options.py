"""The choices of one conversation, kept with it as a JSON object."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace

from rwkv_chat.chat import templates
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.errors import UsageError

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """How answers are made. `template` "" means the one that fits the model.

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

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= 1_000_000:
            raise UsageError(f"max_tokens must lie between 1 and 1000000, not {self.max_tokens}.")
        templates.Think(self.think)
        if self.template:
            templates.get(self.template)

    def to_json(self) -> dict[str, object]:
        """A JSON object from which `from_json` makes an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, object], base: "Options") -> "Options":
        """The choices in `data`, and those of `base` where `data` has none or an unusable one."""
        options = base
        for name, value in data.items():
            with suppress(UsageError):
                options = replace(options, **_choice(name, value, base))  # type: ignore[arg-type]
        return options


def _choice(name: str, value: object, base: Options) -> dict[str, object]:
    if name == "sampling" and isinstance(value, Mapping):
        known = {f.name for f in fields(Sampling)}
        return {name: Sampling(**{k: v for k, v in value.items() if k in known})}
    is_known = name in {f.name for f in fields(Options)} and name != "sampling"
    return {name: value} if is_known and type(value) is type(getattr(base, name)) else {}
