"""Colours for code, line by line; what runs over several lines is carried as a short state."""

import re
from dataclasses import dataclass

from rwkv_chat.tui.markdown.lines import Span

__all__ = ["advance", "highlight"]

_C_WORDS = """
abstract alignas as async auto await bool break case catch char class const constexpr continue
default defer delete do double dyn else enum export extends extern final finally float fn for from
func function go goto if impl implements import in inline instanceof int interface internal is let
long loop match mod module move mut namespace new noexcept null nullptr operator override package
private protected pub public readonly record register return self short signed sizeof static struct
super switch template this throw throws trait try type typedef typename union unsafe unsigned use
using val var virtual void volatile when where while yield true false nil None undefined
"""
_PYTHON_WORDS = """
False None True and as assert async await break case class continue def del elif else except
finally for from global if import in is lambda match nonlocal not or pass raise return self try
while with yield
"""
_SHELL_WORDS = """
if then else elif fi for while until do done case esac function in return exit local export set
unset source alias echo cd sudo read shift trap eval exec
"""
_SQL_WORDS = """
select from where insert into values update set delete create table index view drop alter add
primary key foreign references not null default unique and or in is like between join left right
inner outer full cross on group by order having limit offset union all distinct as case when then
else end begin commit rollback with exists
"""
_LUA_WORDS = """
and break do else elseif end false for function if in local nil not or repeat return then true
until while let where of data type class instance module import case
"""
_DATA_WORDS = "true false null yes no on off True False None"


@dataclass(frozen=True, slots=True)
class _Language:
    words: frozenset[str]
    comment: str = ""
    blocks: tuple[tuple[str, str, str], ...] = ()  # opening, closing, style
    quotes: str = "\"'"
    folded: bool = False  # keywords in any case


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SLASHES = (("/*", "*/", "comment"), ("`", "`", "string"))
_C = _Language(_words(_C_WORDS), "//", _SLASHES)
_RUST = _Language(_words(_C_WORDS), "//", _SLASHES[:1], '"')
_PYTHON = _Language(
    _words(_PYTHON_WORDS), "#", (('"""', '"""', "string"), ("'''", "'''", "string"))
)
_SHELL = _Language(_words(_SHELL_WORDS), "#")
_DATA = _Language(_words(_DATA_WORDS), "#")
_SQL = _Language(_words(_SQL_WORDS), "--", _SLASHES[:1], folded=True)
_LUA = _Language(_words(_LUA_WORDS), "--", (("--[[", "]]", "comment"), ("{-", "-}", "comment")))
_MARKUP = _Language(frozenset(), "", (("<!--", "-->", "comment"),))
_PLAIN = _Language(frozenset(), "", (), "")

_LANGUAGES: dict[str, _Language] = {}
for _language, _names in (
    (_C, "c h cpp c++ cc cxx cuda cu java js javascript jsx ts typescript tsx go golang cs csharp"),
    (_C, "kotlin kt swift scala dart php zig css scss objc glsl wgsl proto groovy"),
    (_RUST, "rust rs"),
    (_PYTHON, "python py python3 pycon ipython cython starlark"),
    (_SHELL, "sh bash shell zsh fish console powershell dockerfile makefile make perl ruby rb r"),
    (_DATA, "json yaml yml toml ini conf cfg properties jsonc"),
    (_SQL, "sql sqlite postgresql mysql"),
    (_LUA, "lua haskell hs elm ada"),
    (_MARKUP, "html xml svg xhtml vue"),
):
    _LANGUAGES |= dict.fromkeys(_names.split(), _language)

_PATTERNS: dict[_Language, re.Pattern[str]] = {}


def _pattern(language: _Language) -> re.Pattern[str]:
    pattern = _PATTERNS.get(language)
    if pattern is None:
        parts: list[str] = []
        if language.blocks:
            openers = "|".join(re.escape(opener) for opener, _, _ in language.blocks)
            parts.append(f"(?P<block>{openers})")
        if language.comment == "#":
            parts.append(r"(?P<comment>(?:(?<=\s)|^)#.*)")
        elif language.comment:
            parts.append(f"(?P<comment>{re.escape(language.comment)}.*)")
        for quote in language.quotes:
            parts.append(rf"{quote}(?:[^{quote}\\]|\\.)*(?:{quote}|\\?$)")
        strings = "|".join(part for part in parts if not part.startswith("(?P"))
        named = [part for part in parts if part.startswith("(?P")]
        if strings:
            named.append(f"(?P<string>{strings})")
        named.append(r"(?P<number>\b0[xX][0-9a-fA-F_]+\b|\b\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?\w*)")
        named.append(r"(?P<name>[^\W\d]\w*)")
        pattern = _PATTERNS[language] = re.compile("|".join(named))
    return pattern


def _language_of(name: str) -> _Language:
    return _LANGUAGES.get(name.lower(), _PLAIN)


def highlight(line: str, name: str, state: int = 0) -> tuple[list[Span], int]:
    """Colour one line of code.

    Args:
        line: Safe text, without its line end.
        name: The language as the fence names it; an unknown one is not coloured.
        state: 0, or what the line before returned.

    Returns:
        The spans, and the state for the next line: 0, or 1 + the index of the open construct.
    """
    language = _language_of(name)
    if language is _PLAIN:
        return ([(line, "fence")] if line else []), 0
    spans: list[Span] = []
    at = 0
    if 0 < state <= len(language.blocks):
        at, state = _inside(line, 0, language, state, spans)
    else:
        state = 0
    pattern = _pattern(language)
    while at < len(line) and not state:
        match = pattern.search(line, at)
        if match is None:
            break
        if match.start() > at:
            spans.append((line[at : match.start()], "fence"))
        at = match.end()
        kind = match.lastgroup or ""
        if kind == "block":
            openers = [opener for opener, _, _ in language.blocks]
            number = openers.index(match.group())
            begun: list[Span] = []
            at, state = _inside(line, at, language, number + 1, begun)
            style = f"fence+{language.blocks[number][2]}"
            spans.append((match.group() + "".join(text for text, _ in begun), style))
        elif kind == "name":
            word = match.group().lower() if language.folded else match.group()
            called = line[at : at + 1] == "("
            style = "keyword" if word in language.words else "call" if called else ""
            spans.append((match.group(), f"fence+{style}" if style else "fence"))
        else:
            spans.append((match.group(), f"fence+{kind}"))
    if at < len(line):
        spans.append((line[at:], "fence"))
    return spans, state


def _inside(
    line: str, at: int, language: _Language, state: int, spans: list[Span]
) -> tuple[int, int]:
    """Take everything up to the end of the open construct, or the whole line."""
    _, closer, style = language.blocks[state - 1]
    end = line.find(closer, at)
    after = len(line) if end < 0 else end + len(closer)
    if after > at:
        spans.append((line[at:after], f"fence+{style}"))
    return after, (state if end < 0 else 0)


def advance(line: str, name: str, state: int) -> int:
    """The state after `line`, as `highlight` returns it, without the colours."""
    language = _language_of(name)
    if not language.blocks:
        return 0
    if not state and not any(opener in line for opener, _, _ in language.blocks):
        return 0
    return highlight(line, name, state)[1]
