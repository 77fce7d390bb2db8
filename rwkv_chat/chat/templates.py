"""How a conversation is written for the model, in bytes, because tokens may span line ends.

A turn reads `User: text`, and a separator, mostly a blank line, joins turns. The text of a labelled
system or user turn holds no separator and no line that begins like a turn, so nobody can forge one.
See RWKV7-G1x-templates.txt in RWKV-LM for the format of G1, v2/chat.py in ChatRWKV for older ones.

The bytes that are on a path are never taken back: each turn feeds only what is still missing,
because an answer may have ended anywhere, the separator and the next label included.
"""

import codecs
import re
from dataclasses import dataclass
from enum import StrEnum

from rwkv_chat.chat.tree import Role
from rwkv_chat.errors import UsageError
from rwkv_chat.text.display import scrub

__all__ = ["Template", "Think", "after_label", "fitting", "get", "names", "split_thought"]

_THINK_OPEN = "<think>"
_THINK_CLOSE = "</think>"
_BLANK_LINE = "\n\n"


class Think(StrEnum):
    """Whether an answer begins with thoughts: `OFF` leaves it to the model, `FAST` gives it empty
    thoughts, `ON` makes it think; `BIT` and `LOT` tell it how long, too.
    """

    OFF = "off"
    FAST = "fast"
    ON = "on"
    BIT = "a bit"
    LOT = "a lot"

    @classmethod
    def _missing_(cls, value: object) -> "Think":
        known = ", ".join(cls)
        raise UsageError(f"There is no thinking mode {value!r}. Known are: {known}.")


# Each ends without `>`: that character may begin a longer token, which the model must choose.
_THINK_PREFIXES = {Think.OFF: b"", Think.FAST: b" <think>\n</think"}
_THINKING = b" <think"
_LENGTHS = (Think.BIT, Think.LOT)


def after_label(prefix: bytes) -> bytes:
    """Of what was fed before an answer, by any template, the part that belongs to what it says."""
    known = (*_THINK_PREFIXES.values(), _THINKING)
    return max((each for each in known if prefix.endswith(each)), key=len)


@dataclass(frozen=True, slots=True)
class Template:
    """One way to write conversations.

    `user`, `assistant` and `system` are the labels of turns. Without an `assistant` label every
    text is fed as it is (raw continuation). Without a `system` label, what opens a conversation
    stands for itself and may hold anything. `material` labels what follows the first blank line of
    a message, where a model tells its instruction from what the instruction is about.
    `lead` stands before everything, `intro` before the first turn where no system turn is.
    `paragraphs` says whether an answer may hold separators: it then ends with one and a label.
    `thinks` says whether the model knows thoughts.
    """

    name: str
    user: str = "User:"
    assistant: str = "Assistant:"
    system: str = "System:"
    separator: str = _BLANK_LINE
    material: str = ""
    lead: str = ""
    intro: str = ""
    paragraphs: bool = False
    thinks: bool = False

    @property
    def labels(self) -> bool:
        """Whether turns have labels."""
        return self.assistant != ""

    @property
    def stops(self) -> tuple[bytes, ...]:
        """An answer ends when its bytes contain one of them."""
        if not self.labels:
            return ()
        ends = self._known_labels() if self.paragraphs else [""]
        return tuple((self.separator + end).encode() for end in ends)

    @property
    def answer_label(self) -> bytes:
        """What stands before an answer and is not part of what it says."""
        return self.assistant.encode()

    def clean(self, role: Role, text: str) -> str:
        """`text` as a turn of `role` says it to the model.

        Separators are broken, runs of line ends folded (except in answers that may hold them),
        outer whitespace goes, and a line that begins like a turn is indented by one space.
        """
        text = scrub(text)
        if not self.labels or role is Role.TEXT:
            return text
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        label = self._label(role)
        if not label:
            return text.strip()
        whole = role is Role.ASSISTANT and self.paragraphs
        separator = self.separator
        if not whole and not separator.strip("\n"):
            text = re.sub(f"\n{{{len(separator)},}}", separator[1:] or " ", text)
        text = self._indent(text.strip(), begins_line=label.endswith("\n"))
        return text if whole or not text else self._break(label + _gap(label), text)

    def opening(self, role: Role, text: str, tail: bytes, think: Think = Think.OFF) -> bytes:
        """What to feed for a turn whose text is known.

        Args:
            role: who speaks; `Role.ASSISTANT` writes an answer that no model made (an import, an
                edit) and leaves its end open, as a model does.
            text: of any origin.
            tail: the last 256 bytes or more on the path; none at its start.
            think: how the answer to this turn is to begin.
        """
        said = self.clean(role, text)
        if not self.labels or role is Role.TEXT:
            return said.encode("utf-8")
        label = self._label(role)
        if role is Role.USER and self.material:
            said = self._with_material(text)
        if role is Role.USER and self.thinks and think in _LENGTHS:
            said += f" (think {think})"
        before = self.separator
        if not tail:
            before = self.lead
            if self.intro and role is not Role.SYSTEM:
                before += self.intro + self.separator
        joint = (before + label).encode()
        turn = joint[_overlap(tail, joint) :] + (_gap(label) + said if said else "").encode()
        if role is not Role.ASSISTANT:
            return turn + self.separator.encode()
        # A text that ends in half a label must not become the next turn's.
        ends = [(self.separator + each).encode() for each in self._known_labels()]
        half = max(_overlap(said.encode(), end) for end in ends)
        return turn + b"\n" if half > len(self.separator.encode()) else turn

    def answer_prefix(self, think: Think) -> bytes:
        """What to feed before the model answers the turn that `opening` wrote."""
        thought = _THINK_PREFIXES.get(think, _THINKING) if self.thinks else b""
        return self.answer_label + thought

    def display(self, raw: bytes, complete: bool, known: int = 0) -> str:
        """What an answer says, for a reader; still to be cleaned for a terminal.

        Args:
            raw: the bytes of the answer's ids without `answer_label`, a thinking prefix included.
            complete: whether the answer has ended. It says what stands before the first stop, whose
                last token may go on behind it. While it grows, half a character at its end, and
                what may become a stop, are held back.
            known: how many of its bytes it had said before it was continued; no stop lies there.
        """
        ends = [
            place
            for stop in self.stops
            if (place := raw.find(stop, max(0, known - len(stop) + 1))) >= 0
        ]
        if ends:
            raw = raw[: min(ends)]
        elif not complete:
            raw = raw[: len(raw) - max((_overlap(raw, stop) for stop in self.stops), default=0)]
        raw = raw.removeprefix(_gap(self.assistant).encode())
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(raw, final=complete)
        return text.rstrip() if self.labels else text

    def _label(self, role: Role) -> str:
        labels = {Role.SYSTEM: self.system, Role.USER: self.user, Role.ASSISTANT: self.assistant}
        return labels[role]

    def _known_labels(self) -> list[str]:
        labels = (self.system, self.user, self.assistant, self.material)
        return [label for label in labels if label]

    def _with_material(self, text: str) -> str:
        """The instruction of a message, and what follows its first blank line under a label."""
        plain = scrub(text).replace("\r\n", "\n").replace("\r", "\n").strip()
        first, _, rest = plain.partition(_BLANK_LINE)
        said = self.clean(Role.USER, first)
        material = self.clean(Role.USER, rest)
        if not material:
            return said
        return said + self.separator + self.material + _gap(self.material) + material

    def _indent(self, text: str, *, begins_line: bool) -> str:
        parts = []
        for label in self._known_labels():
            core = label.strip()
            word = core.removesuffix(":").rstrip()
            parts.append(re.escape(word) + "[ \t]*:" if word != core else re.escape(core))
        start = r"(\A|\n)" if begins_line else r"(\n)"
        return re.sub(f"{start}(?={'|'.join(parts)})", r"\1 ", text)

    def _break(self, before: str, text: str) -> str:
        """`text` with a character put into every separator that it would bring about."""
        separator = self.separator
        wedge = next(c for c in map(chr, range(0x20, 0x7F)) if c not in separator)
        if len(separator) == 1:
            return text.replace(separator, wedge)
        whole = before + text + separator
        found = re.finditer(f"(?={re.escape(separator)})", whole)
        ends = [max(match.start() + 1 - len(before), 0) for match in found][:-1]
        pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
        return wedge.join(pieces)


def _gap(label: str) -> str:
    """What stands between a label and a text."""
    return " " if label and not label[-1].isspace() else ""


def _overlap(data: bytes, text: bytes) -> int:
    """The length of the longest beginning of `text` with which `data` ends."""
    return max(n for n in range(len(text) + 1) if data.endswith(text[:n]))


_TEMPLATES = {
    template.name: template
    for template in (
        Template("chat"),
        Template("g1", paragraphs=True, thinks=True),
        Template("question", user="Question:", assistant="Answer:", system=""),
        Template(
            "instruction",
            user="Instruction:",
            assistant="Response:",
            system="",
            material="Input:",
            paragraphs=True,
        ),
        Template("pile", user="Q:", assistant="A:", system="", lead="\n"),
        Template("raven", user="Bob:", assistant="Alice:", system="", lead="\n"),
        Template(
            "raven-instruction",
            user="# Instruction:\n",
            assistant="# Response:\n",
            system="",
            material="# Input:\n",
            lead="\n",
            intro="Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.",
            paragraphs=True,
        ),
        Template("raw", user="", assistant="", system="", separator=""),
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
        known = ", ".join([*names(), "own"])
        raise UsageError(f"There is no template {name!r}. Known are: {known}.") from None


_G1 = re.compile(r"(?<![a-z0-9])g1[a-z]?(?![a-z0-9])")
_STORIES = re.compile(r"novel|music|midi|(?<![a-z])abc(?![a-z])")


def fitting(tokenizer: str, name: str) -> str:
    """The name of the template that a model was trained with.

    Args:
        tokenizer: the kind of its vocabulary, such as "world" or "20b"; "inside", that of a GGUF
            file, is a variant of World.
        name: of the model, as its file is called.
    """
    name = name.lower()
    if tokenizer not in ("world", "inside", "20b") or _STORIES.search(name):
        return "raw"
    if tokenizer == "20b":
        return "raven" if "raven" in name else "pile"
    return "g1" if _G1.search(name) else "chat"


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
