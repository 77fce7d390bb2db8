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
_MAX_OPENING = 1000


@dataclass(frozen=True, slots=True)
class Own:
    """The parts of a template that are text; see `Template`. `system` and the last may be empty.

    `base` names the template that it is like in all else.

    Raises:
        UsageError: a part that cannot be used, with its name.
    """

    user: str = "User:"
    assistant: str = "Assistant:"
    separator: str = "\n\n"
    system: str = "System:"
    base: str = "chat"
    material: str = ""
    lead: str = ""
    intro: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            part = getattr(self, field.name)
            longest = _MAX_OPENING if field.name in ("lead", "intro") else _MAX_LENGTH
            if not isinstance(part, str) or len(part) > longest or scrub(part) != part:
                raise UsageError(
                    f"The {field.name} part of your template must be a text of at most "
                    f"{longest} characters, not {part!r:.80}."
                )
        for name in ("user", "assistant"):
            if not getattr(self, name).strip():
                raise UsageError(
                    f"The {name} part of your template is empty; give a label, such as "
                    f"{name.capitalize()}:."
                )
        if not self.separator:
            raise UsageError("The separator of your template is empty; give one, such as \\n\\n.")
        for name in ("system", "material"):
            if getattr(self, name).isspace():
                raise UsageError(
                    f"The {name} part of your template holds nothing that can be seen; give a "
                    "label, or leave it empty."
                )
        for name in ("user", "assistant", "system", "material"):
            if self.separator in getattr(self, name):
                raise UsageError(
                    f"The {name} part of your template must not hold the separator: "
                    "nobody could tell where a turn ends."
                )
        if not templates.get(self.base).labels:
            raise UsageError(f"Your template cannot be like {self.base}, which has no labels.")

    def template(self) -> Template:
        """What conversations are written with."""
        # A space before an answer is for the model to write: with it begin most of its tokens.
        user, assistant, system, material = (
            label.rstrip(" ") for label in (self.user, self.assistant, self.system, self.material)
        )
        base = templates.get(self.base)
        return replace(
            base,
            name=OWN,
            user=user,
            assistant=assistant,
            system=system,
            separator=self.separator,
            material=material,
            lead=self.lead,
            intro=self.intro,
            # Only what begins lines can be told apart, and so made harmless, within an answer.
            paragraphs=base.paragraphs and not self.separator.strip("\n"),
        )

    @classmethod
    def like(cls, template: Template) -> "Own":
        """The parts of a known template, to change them; the usual ones where it has no labels."""
        if not template.labels:
            return cls()
        names = [field.name for field in fields(cls) if field.name != "base"]
        return cls(**{name: getattr(template, name) for name in names}, base=template.name)


def choices() -> list[str]:
    """The names of all templates that a person can choose."""
    return [*templates.names(), OWN]


def named(name: str, own: Own) -> Template:
    """The template with this name, `own` being what the person has written.

    Raises:
        UsageError: there is none.
    """
    return own.template() if name == OWN else templates.get(name)
