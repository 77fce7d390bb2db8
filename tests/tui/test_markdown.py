"""Markdown for a terminal: what it shows, that it loses nothing, and what it costs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from rwkv_chat.tui.markdown.code import advance, highlight
from rwkv_chat.tui.markdown.document import Document
from rwkv_chat.tui.markdown.inline import parse_inline
from rwkv_chat.tui.markdown.lines import Line, fit, wrap, wrap_ranges
from rwkv_chat.tui.markdown.render import render_chunk

_PROSE = ["word ", "漢字", "👩\u200d🚀", "e\u0301", "\t", "  ", "\n", "\n\n", "x" * 90, "\\", '"""']
_MARKS = ["```python\n", "```\n", "**", "*", "_", "`", "~~", "# ", "- ", "1. ", "> ", "[x](y)"]
_TABLES = ["| a | b |\n", "|---|---|\n"]
pieces = st.sampled_from([*_PROSE, *_MARKS, *_TABLES])
texts = st.lists(pieces, max_size=60).map("".join)


def drawn(text: str, width: int = 60) -> list[Line]:
    return [line for chunk in Document(text).chunks for line in render_chunk(chunk, width)]


def shown(text: str, width: int = 60) -> list[str]:
    return [line.text.rstrip() for line in drawn(text, width)]


@given(texts, st.integers(8, 80))
@settings(max_examples=300, deadline=None)
def test_no_line_is_wider_than_the_screen(text: str, width: int) -> None:
    for line in drawn(text, width):
        assert cell_len(line.text) <= max(width, 14)


@pytest.mark.parametrize("name", ["a" * 100, "的" * 20, ""])
def test_the_name_of_a_language_is_cut_at_the_edge(name: str) -> None:
    top = drawn(f"```{name}\ncode\n```", 16)[0].text
    assert top.startswith("╭ " + name[:7])
    assert cell_len(top) <= 16


@given(texts, st.lists(st.integers(0, 200), max_size=6))
@settings(max_examples=200, deadline=None)
def test_growing_in_any_steps_gives_the_same_as_all_at_once(text: str, cuts: list[int]) -> None:
    document = Document()
    for cut in sorted(cut for cut in cuts if cut < len(text)):
        before = list(document.chunks)
        first = document.update(text[:cut])
        assert document.chunks[:first] == before[:first]
    document.update(text)
    assert document.chunks == Document(text).chunks


@given(st.text(max_size=200), st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_wrapping_drops_nothing_but_spaces(text: str, width: int) -> None:
    ranges = wrap_ranges(text, width)
    kept = "".join(text[start:end] for start, end in ranges)
    assert "".join(kept.split()) == "".join(text.split())
    for start, end in ranges:
        assert cell_len(text[start:end].rstrip()) <= width or end - start == 1 or width < 2


@given(texts)
@settings(max_examples=300, deadline=None)
def test_inline_marks_hide_only_themselves(text: str) -> None:
    line = text.replace("\n", " ")
    visible = "".join(part for part, _ in parse_inline(line))
    words = [word for word in ("word", "漢字", "👩‍🚀", "x" * 90) if word in line]
    assert all(visible.count(word) == line.count(word) for word in words)


def test_emphasis_code_and_links() -> None:
    assert parse_inline("a **b *c* d** `e*f*` ~~g~~") == [
        ("a ", ""), ("b ", "strong"), ("c", "em+strong"), (" d", "strong"), (" ", ""),
        ("e*f*", "code"), (" ", ""), ("g", "strike"),
    ]  # fmt: skip
    assert parse_inline("snake_case_name 2*3*4 * x") == [("snake_case_name 2*3*4 * x", "")]
    assert parse_inline("[label](javascript:x)") == [("label", "link"), (" (javascript:x)", "dim")]
    assert parse_inline("你**好**吗") == [("你", ""), ("好", "strong"), ("吗", "")]


def test_hostile_lines_cost_linear_time() -> None:
    for hostile in ("*a " * 1300, "`" * 3999, "[" * 3999, "**a" * 1300, "_" * 3999, "a**" * 1300):
        assert "".join(text for text, _ in parse_inline(hostile))


def test_blocks() -> None:
    text = "# Title\n- one\n  - two\n3. three\n- [x] done\n> said\n---\nplain"
    assert shown(text) == [
        "Title", "• one", "  • two", "3. three", "☑ done", "▎ said", "─" * 40, "plain",
    ]  # fmt: skip


def test_items_hang_and_cjk_wraps_between_characters() -> None:
    assert shown("- 一二三四五六七八九。十", 12) == ["• 一二三四五", "  六七八九。", "  十"]
    assert shown("12. aaaa bbbb cccc", 12) == ["12. aaaa", "    bbbb", "    cccc"]


def test_tables_fit_or_fall_back() -> None:
    table = "| name | n |\n|---|--:|\n| a long name here | 10 |\n| b | 2 |"
    assert shown(table, 40) == [
        "name             │  n",
        "─────────────────┼───",
        "a long name here │ 10",
        "b                │  2",
    ]
    narrow = shown(table, 16)
    assert all(cell_len(line) <= 16 for line in narrow)
    assert any("long" in line for line in narrow)
    assert "|" in "".join(shown(table, 8))


def test_code_keeps_its_text_and_its_indentation() -> None:
    lines = shown("```python\ndef f():\n    return '**x**'\n```\nafter")
    assert lines == ["╭ python", "│ def f():", "│     return '**x**'", "╰", "after"]
    assert shown("```\nopen")[-1] == "│ open"


def test_colours_carry_over_lines_and_chunks() -> None:
    text = "```python\nx = '''one\n" + "inside\n" * 100 + "'''\ny = 1\n```"
    rows = [line for line in drawn(text) if line.text == "│ inside"]
    assert len(rows) == 100
    assert all(("inside", "fence+string") in line.spans for line in rows)
    last = next(line for line in drawn(text) if "y = 1" in line.text)
    assert ("1", "fence+number") in last.spans
    assert advance("/* open", "c", 0) == 1
    assert highlight("still */ int x;", "c", 1) == (
        [("still */", "fence+comment"), (" ", "fence"), ("int", "fence+keyword"),
         (" ", "fence"), ("x", "fence"), (";", "fence")], 0,
    )  # fmt: skip


@given(
    st.text(max_size=120), st.sampled_from(["python", "c", "sh", "sql", "lua", "html", "json", "?"])
)
@settings(max_examples=200, deadline=None)
def test_colouring_changes_no_character(line: str, language: str) -> None:
    line = line.replace("\n", "").replace("\r", "")
    for state in (0, 1):
        spans, _ = highlight(line, language, state)
        assert "".join(text for text, _ in spans) == line


def test_finished_chunks_stay_the_same_objects() -> None:
    text = "".join(f"line {n}\n" for n in range(1000))
    document = Document(text)
    before = document.chunks[:-1]
    first = document.update(text + "more")
    assert first == len(before)
    assert all(a is b for a, b in zip(document.chunks, before, strict=False))


def test_a_line_of_a_megabyte_is_cut_into_chunks() -> None:
    document = Document("x" * 1_000_000)
    assert max(sum(map(len, chunk.lines)) for chunk in document.chunks) <= 10_000
    assert sum(sum(map(len, chunk.lines)) for chunk in document.chunks) == 1_000_000


def test_control_codes_become_marks() -> None:
    lines = shown("a\x1b[31mb\r\nc\u2028d\x07")
    assert lines == ["a␛[31mb", "c", "d␇"]


def test_fit_cuts_with_an_ellipsis() -> None:
    assert fit([("abcdef", "x")], 4) == (("abc…", "x"),)
    assert fit([("漢字漢字", "x")], 4) == (("漢…", "x"),)
    assert fit([("ab", "x"), ("cd", "y")], 4) == (("ab", "x"), ("cd", "y"))


def test_prefixes_of_wrapped_lines() -> None:
    lines = wrap([("aaa bbb ccc", "")], 6, first=(("- ", "b"),))
    assert [line.text for line in lines] == ["- aaa", "  bbb", "  ccc"]
