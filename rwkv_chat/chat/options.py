"""The choices of one conversation, kept with it as a JSON object."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.errors import UsageError

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """How answers are made. `template` "" means the one that fits the model.

    `system` opens the conversation when it is not empty; `think` names a thinking mode;
    `max_tokens` bounds one answer.
    """

    sampling: Sampling = field(default_factory=Sampling)
    system: str = ""
    think: str = "off"
    template: str = ""
    max_tokens: int = 500

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= 1_000_000:
            raise UsageError(f"max_tokens must lie between 1 and 1000000, not {self.max_tokens}.")

    def to_json(self) -> dict[str, object]:
        """A JSON object from which `from_json` makes an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, object], base: "Options") -> "Options":
        """The choices in `data`, and those of `base` where `data` has none or an unusable one."""
        known = {f.name: f for f in fields(cls)}
        chosen: dict[str, object] = {}
        for name, value in data.items():
            if name == "sampling" and isinstance(value, Mapping):
                names = {f.name for f in fields(Sampling)}
                try:
                    chosen[name] = Sampling(**{k: v for k, v in value.items() if k in names})
                except UsageError:
                    continue
            elif name in known and type(value) is type(getattr(base, name)):
                chosen[name] = value
        try:
            return replace(base, **chosen)  # type: ignore[arg-type]
        except UsageError:
            return base
