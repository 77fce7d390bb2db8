"""A template that a person writes."""

from dataclasses import dataclass, fields, replace

from rwkv_chat.chat import templates
from rwkv_chat.chat.templates import Template
from rwkv_chat.errors import UsageError
from rwkv_chat.text.display import scrub

__all__ = ["OWN", "Own", "choices", "named"]

OWN = "own"
"""The name under which it is chosen."""

_MAX_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Own:
    """The labels of turns and what separates them; `system` may be empty.

    `base` names the template that it is like in all else.

    Raises:
        UsageError: a part that cannot be used, with its name.
    """

    user: str = "User:"
    assistant: str = "Assistant:"
    separator: str = "\n\n"
    system: str = "System:"
    base: str = "chat"

    def __post_init__(self) -> None:
        for field in fields(self):
            part = getattr(self, field.name)
            if not isinstance(part, str) or len(part) > _MAX_LENGTH or scrub(part) != part:
                raise UsageError(
                    f"The {field.name} part of your template must be a text of at most "
                    f"{_MAX_LENGTH} characters, not {part!r:.80}."
                )
        for name in ("user", "assistant"):
            if not getattr(self, name).strip():
                raise UsageError(
                    f"The {name} part of your template is empty; give a label, such as "
                    f"{name.capitalize()}:."
                )
        if not self.separator:
            raise UsageError("The separator of your template is empty; give one, such as \\n\\n.")
        for name in ("user", "assistant", "system"):
            if self.separator in getattr(self, name):
                raise UsageError(
                    f"The {name} part of your template must not hold the separator: "
                    "nobody could tell where a turn ends."
                )
        base = templates.get(self.base)
        if not base.labels:
            raise UsageError(f"Your template cannot be like {self.base}, which has no labels.")
        if self.separator in base.material:
            raise UsageError(
                f"The separator of your template must not stand in {base.material!r}, which "
                f"labels the material in a template like {self.base}."
            )

    def template(self) -> Template:
        """What conversations are written with."""
        # A space before an answer is for the model to write: with it begin most of its tokens.
        user, assistant, system = (
            label.rstrip(" ") for label in (self.user, self.assistant, self.system)
        )
        base = templates.get(self.base)
        return replace(
            base,
            name=OWN,
            user=user,
            assistant=assistant,
            system=system,
            separator=self.separator,
            # Only what begins lines can be told apart, and so made harmless, within an answer.
            paragraphs=base.paragraphs and not self.separator.strip("\n"),
        )

    @classmethod
    def like(cls, template: Template) -> "Own":
        """The parts of a known template, to change them; the usual ones where it has no labels."""
        if not template.labels:
            return cls()
        return cls(
            template.user, template.assistant, template.separator, template.system, template.name
        )


def choices() -> list[str]:
    """The names of all templates that a person can choose."""
    return [*templates.names(), OWN]


def named(name: str, own: Own) -> Template:
    """The template with this name, `own` being what the person has written.

    Raises:
        UsageError: there is none.
    """
    return own.template() if name == OWN else templates.get(name)
