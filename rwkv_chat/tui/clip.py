"""What can be cut out of a turn for the clipboard."""

from rwkv_chat.tui.markdown.document import Fence, fence_after

__all__ = ["last_code_block"]


def last_code_block(text: str) -> str | None:
    """The raw text of the last code block, None where there is none; an unfinished one counts."""
    fence: Fence | None = None
    lines: list[str] = []
    found: list[str] | None = None
    for line in text.split("\n"):
        after = fence_after(line, fence)
        if fence is None and after is not None:
            lines = found = []
        elif fence is not None and after is not None:
            indent = min(fence.indent, len(line) - len(line.lstrip(" ")))
            lines.append(line[indent:])
        fence = after
    return "\n".join(found) if found is not None else None
