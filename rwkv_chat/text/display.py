"""Untrusted text made safe for a terminal.

Every string that was not written in this program's source (model output, titles, file names,
imported chats, error texts) passes `clean` before it is shown. There is no parser of escape
sequences: each dangerous character is replaced by itself, so a sequence that is cut across two
chunks is as harmless as a whole one.
"""

import re

__all__ = ["clean", "one_line", "scrub"]

_REPLACEMENT = "\ufffd"

# A regional flag: a black flag, the letters of a region as tags, a closing tag. Longer runs of
# invisible tags can smuggle text and are no flags.
_FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_UNSAFE_OR_FLAG = re.compile(f"{_FLAG}|\r\n|{_UNSAFE.pattern}")
_SURROGATES_OR_NUL = re.compile("[\x00\ud800-\udfff]")


def _mark(match: re.Match[str]) -> str:
    found = match[0]
    if len(found) > 1:
        return "\n" if found == "\r\n" else found
    code = ord(found)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if code in (0x2028, 0x2029):
        return "\n"
    if 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069:
        return f"\u27e8U+{code:04X}\u27e9"
    if code >= 0xE0000:
        return ""
    return _REPLACEMENT


def clean(text: str) -> str:
    """`text` as it may be sent to a terminal.

    Line breaks (\\r\\n, U+2028 and U+2029 too) become \\n; tabs stay. Every other control character
    becomes a visible mark: a control picture such as U+241B, or U+FFFD for C1 controls and lone
    surrogates. Controls of writing direction become tags such as ⟨U+202E⟩. Invisible tag
    characters vanish unless they spell a flag. Cleaning twice changes nothing more.
    """
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE_OR_FLAG.sub(_mark, text)


def scrub(text: str) -> str:
    """`text` as it may be stored, searched and encoded: surrogate pairs joined, lone surrogates
    and NUL replaced by U+FFFD, nothing else changed.
    """
    if _SURROGATES_OR_NUL.search(text) is None:
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined.replace("\0", _REPLACEMENT)


def one_line(text: str, width_chars: int) -> str:
    """`text` cleaned, on one line, without outer spaces, in at most `width_chars` characters.

    What does not fit is cut off and shown as an ellipsis.
    """
    # Only the beginning can be seen; a text of megabytes must not cost its whole length.
    beginning = text[: 16 * max(width_chars, 0) + 4096]
    line = " ".join(clean(beginning).split())
    if len(line) <= width_chars:
        return line
    if width_chars <= 0:
        return ""
    # The cut may fall inside a flag, whose tags are then no flag any more.
    return clean(line[: width_chars - 1]).rstrip(" \u200d") + "\u2026"
