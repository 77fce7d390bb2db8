"""How a conversation is written for the model, in bytes, because tokens may span line ends.

A turn reads `User: text`, and a blank line joins turns. The text of a system or user turn holds no
blank line and no line that begins like a turn, so nobody can forge one. See
RWKV7-G1x-templates.txt in RWKV-LM for the format.

The bytes that are on a path are never taken back: each turn feeds only what is still missing,
because an answer may have ended anywhere, the blank line and the next label included.
"""

import codecs
import re
from dataclasses import dataclass
from enum import StrEnum

from rwkv_chat.chat.tree import Role
from rwkv_chat.errors import UsageError
from rwkv_chat.text.display import scrub

__all__ = ["Template", "Think", "get", "names", "split_thought"]

_LABELS = {Role.SYSTEM: b"System:", Role.USER: b"User:", Role.ASSISTANT: b"Assistant:"}
_BLANK_LINE = b"\n\n"
_FORGED_LABEL = re.compile(r"\n(?=(?:System|User|Assistant)[ \t]*:)")
_THINK_OPEN = "<think>"
_THINK_CLOSE = "</think>"


class Think(StrEnum):
    """Whether an answer begins with thoughts: `OFF` leaves it to the model, `FAST` gives it empty
    thoughts, `ON` makes it think.
    """

    OFF = "off"
    FAST = "fast"
    ON = "on"

    @classmethod
    def _missing_(cls, value: object) -> "Think":
        known = ", ".join(cls)
        raise UsageError(f"There is no thinking mode {value!r}. Known are: {known}.")


# Each ends without `>`: that character may begin a longer token, which the model must choose.
_THINK_PREFIXES = {Think.OFF: b"", Think.FAST: b" <think>\n</think", Think.ON: b" <think"}


@dataclass(frozen=True, slots=True)
class Template:
    """One way to write conversations.

    `stops` end an answer when its bytes contain one of them. `labels` is false for raw
    continuation, where every text is fed as it is. `paragraphs` says whether an answer may hold
    blank lines, `thinks` whether the model knows thoughts.
    """

    name: str
    stops: tuple[bytes, ...]
    labels: bool = True
    paragraphs: bool = False
    thinks: bool = False

    @property
    def answer_label(self) -> bytes:
        """What stands before an answer and is not part of what it says."""
        return _LABELS[Role.ASSISTANT] if self.labels else b""

    def clean(self, role: Role, text: str) -> str:
        """`text` as a turn of `role` says it to the model.

        Blank lines are folded (except in answers that may hold them), outer whitespace goes, and a
        line that begins like a turn is indented by one space.
        """
        text = scrub(text)
        if not self.labels or role is Role.TEXT:
            return text
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if role is not Role.ASSISTANT or not self.paragraphs:
            text = re.sub(r"\n{2,}", "\n", text)
        return _FORGED_LABEL.sub("\n ", text.strip())

    def opening(self, role: Role, text: str, tail: bytes) -> bytes:
        """What to feed for a turn whose text is known.

        Args:
            role: who speaks; `Role.ASSISTANT` writes an answer that no model made (an import, an
                edit) and leaves its end open, as a model does.
            text: of any origin.
            tail: the last 32 bytes or more on the path; none at its start.
        """
        said = self.clean(role, text).encode("utf-8")
        if not self.labels or role is Role.TEXT:
            return said
        joint = (_BLANK_LINE if tail else b"") + _LABELS[role]
        turn = joint[_overlap(tail, joint) :] + (b" " + said if said else b"")
        if role is not Role.ASSISTANT:
            return turn + _BLANK_LINE
        # A text that ends in half a label must not become the next turn's.
        half = max(_overlap(said, _BLANK_LINE + label) for label in _LABELS.values())
        return turn + b"\n" if half > len(_BLANK_LINE) else turn

    def answer_prefix(self, think: Think) -> bytes:
        """What to feed before the model answers the turn that `opening` wrote."""
        return self.answer_label + (_THINK_PREFIXES[think] if self.thinks else b"")

    def display(self, raw: bytes, complete: bool) -> str:
        """What an answer says, for a reader; still to be cleaned for a terminal.

        Args:
            raw: the bytes of the answer's ids without `answer_label`, a thinking prefix included.
            complete: whether the answer has ended. It says what stands before the first stop, whose
                last token may go on behind it. While it grows, half a character at its end, and
                what may become a stop, are held back.
        """
        if self.labels:
            raw = raw.removeprefix(b" ")
        ends = [place for stop in self.stops if (place := raw.find(stop)) >= 0]
        if ends:
            raw = raw[: min(ends)]
        elif not complete:
            raw = raw[: len(raw) - max((_overlap(raw, stop) for stop in self.stops), default=0)]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(raw, final=complete)
        return text.rstrip() if self.labels else text


def _overlap(data: bytes, text: bytes) -> int:
    """The length of the longest beginning of `text` with which `data` ends."""
    return max(n for n in range(len(text) + 1) if data.endswith(text[:n]))


_TEMPLATES = {
    template.name: template
    for template in (
        Template("chat", stops=(_BLANK_LINE,)),
        Template(
            "g1",
            stops=tuple(_BLANK_LINE + label for label in _LABELS.values()),
            paragraphs=True,
            thinks=True,
        ),
        Template("raw", stops=(), labels=False),
    )
}


def names() -> list[str]:
    """The names of all templates."""
    return list(_TEMPLATES)


def get(name: str) -> Template:
    """The template with this name.

    Raises:
        UsageError: there is none.
    """
    try:
        return _TEMPLATES[name]
    except KeyError:
        known = ", ".join(names())
        raise UsageError(f"There is no template {name!r}. Known are: {known}.") from None


def split_thought(text: str) -> tuple[str | None, str]:
    """The thoughts of an answer, None where it has none, and what it says after them.

    Works on a growing answer too: thoughts that have not ended are all there is.
    """
    if text == _THINK_OPEN[:-1]:
        return "", ""
    if not text.startswith(_THINK_OPEN):
        return None, text
    thought, closed, answer = text.removeprefix(_THINK_OPEN).partition(_THINK_CLOSE)
    if closed:
        return thought.strip() or None, answer.lstrip()
    for length in range(len(_THINK_CLOSE) - 1, 0, -1):
        if thought.endswith(_THINK_CLOSE[:length]):
            thought = thought[:-length]
            break
    return thought.strip(), ""
