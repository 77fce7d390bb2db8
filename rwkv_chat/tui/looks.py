"""Styles of single characters, from the components of a widget in the style sheet."""

from collections.abc import Iterable

from rich.style import Style
from textual.widget import Widget

__all__ = ["blend"]


def blend(widget: Widget, components: Iterable[str]) -> Style:
    """The style of `components` on top of each other, transparent colours mixed with what is below.

    Args:
        widget: The widget that declares them in COMPONENT_CLASSES.
        components: Names, the lowest first.
    """
    _, ground = widget.background_colors
    front = ground + widget.styles.color
    text = Style()
    for name in components:
        styles = widget.get_component_styles(name)
        if styles.has_rule("background"):
            ground += styles.background
        if styles.has_rule("color"):
            front = styles.color
        if styles.has_rule("text_style"):
            text += styles.text_style
    return Style.from_color((ground + front).rich_color, ground.rich_color) + text
